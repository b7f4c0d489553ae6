// Fibers: the threads of a block, one after another on one thread of the machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if defined(__x86_64__)

// Saves what a function has to keep and the stack pointer, and goes on where another stack was left.
extern "C" void nexus_fiber_switch(void** from, void* to);
asm(R"(
.text
.globl nexus_fiber_switch
.type nexus_fiber_switch,@function
nexus_fiber_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size nexus_fiber_switch,.-nexus_fiber_switch
)");

class Fiber {
  public:
    static constexpr size_t stack_bytes = 64 << 10;

    ~Fiber() { std::free(stack_); }

    // From here on, `resume` runs `entry`, which must not return.
    void start(void (*entry)()) {
        if (!stack_) stack_ = static_cast<char*>(std::aligned_alloc(64, stack_bytes));
        auto* top = reinterpret_cast<uint64_t*>(stack_ + stack_bytes);
        // As if `entry` had been called: the stack is off by 8 from a multiple of 16.
        *--top = 0;
        *--top = reinterpret_cast<uint64_t>(entry);
        for (int i = 0; i < 6; i++) *--top = 0;
        sp_ = top;
    }

    void resume() { nexus_fiber_switch(&caller_, sp_); }
    void yield() { nexus_fiber_switch(&sp_, caller_); }

  private:
    char* stack_ = nullptr;
    void* sp_ = nullptr;
    void* caller_ = nullptr;
};

#else

#include <ucontext.h>

// Slower, and everywhere that POSIX is.
class Fiber {
  public:
    static constexpr size_t stack_bytes = 64 << 10;

    ~Fiber() { std::free(stack_); }

    void start(void (*entry)()) {
        if (!stack_) stack_ = static_cast<char*>(std::malloc(stack_bytes));
        getcontext(&own_);
        own_.uc_stack.ss_sp = stack_;
        own_.uc_stack.ss_size = stack_bytes;
        own_.uc_link = nullptr;
        makecontext(&own_, entry, 0);
    }

    void resume() { swapcontext(&caller_, &own_); }
    void yield() { swapcontext(&own_, &caller_); }

  private:
    char* stack_ = nullptr;
    ucontext_t own_;
    ucontext_t caller_;
};

#endif
