// A block of threads: barriers, what the lanes of a warp tell each other, shared memory, asynchronous copies. What a kernel does
// wrong there ends the launch with a message.
#pragma once

#include "fiber.hpp"

#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

struct Index {
    unsigned x, y, z;
};

// Ends a launch.
struct Misuse {
    std::string message;
};

class Block {
  public:
    static constexpr unsigned lanes = 32;
    static constexpr size_t message_bytes = 32;

    Index index{}, grid{}, size{};

    // The block whose thread runs now. Blocks are run by one thread of the machine.
    static Block*& current() {
        static thread_local Block* block = nullptr;
        return block;
    }

    Index thread() const { return {running_, 0, 0}; }

    // Runs `body` once for each thread.
    template <class Body>
    void run(unsigned threads, size_t dynamic_bytes, const Body& body) {
        size = {threads, 1, 1};
        while (threads_.size() < threads) threads_.push_back(std::make_unique<Thread>());
        warps_.assign((threads + lanes - 1) / lanes, Warp{});
        dynamic_.assign(dynamic_bytes + 128, '\xff');
        shared_.clear();
        body_ = [](const void* body) { (*static_cast<const Body*>(body))(); };
        argument_ = &body;
        failure_.clear();
        current() = this;
        for (unsigned t = 0; t < threads; t++) {
            Thread& thread = *threads_[t];
            thread.state = State::ready;
            thread.parity = 0;
            thread.copies.clear();
            thread.committed.clear();
            thread.fiber.start(&Block::enter);
        }
        while (step(threads)) {
        }
        if (!failure_.empty()) throw Misuse{failure_};
    }

    // All threads of the block.
    void barrier() { wait(State::at_barrier); }

    // What each lane of the warp gives, to be read by `told` until the next exchange.
    void tell(const void* message, size_t bytes) {
        Thread& thread = own();
        thread.parity ^= 1;
        Warp& warp = warps_[running_ / lanes];
        std::memcpy(warp.messages[thread.parity][running_ % lanes], message, bytes);
        warp.summed[thread.parity] = false;
        wait(State::at_exchange);
    }

    // The sum of the floats that the lanes told, added as a butterfly of shuffles adds them.
    float told_sum() {
        Warp& warp = warps_[running_ / lanes];
        const unsigned parity = own().parity;
        float* sums = warp.sums[parity];
        if (!warp.summed[parity]) {
            for (unsigned lane = 0; lane < lanes; lane++) sums[lane] = told<float>(lane);
            for (unsigned distance = lanes / 2; distance > 0; distance /= 2) {
                float next[lanes];
                for (unsigned lane = 0; lane < lanes; lane++) next[lane] = sums[lane] + sums[lane ^ distance];
                std::memcpy(sums, next, sizeof next);
            }
            warp.summed[parity] = true;
        }
        return sums[running_ % lanes];
    }

    template <class T>
    T told(unsigned lane) const {
        T message;
        std::memcpy(&message, warps_[running_ / lanes].messages[threads_[running_]->parity][lane], sizeof(T));
        return message;
    }

    char* dynamic() { return dynamic_.data() + (128 - reinterpret_cast<uintptr_t>(dynamic_.data()) % 128) % 128; }

    // An address in dynamic shared memory, as instructions take it.
    char* shared(uint32_t address, size_t bytes) {
        if (address + bytes > dynamic_.size() - 128) fail("an address beyond the block's shared memory");
        if (address % bytes) fail("a misaligned address in shared memory");
        return dynamic() + address;
    }

    // Shared memory that is declared: the same for all threads that come to the declaration.
    void* declared(const void* where, size_t bytes) {
        auto& memory = shared_[where];
        if (memory.empty()) memory.assign(bytes, '\xff');
        return memory.data();
    }

    void copy(uint32_t to, const void* from, bool valid) {
        if (reinterpret_cast<uintptr_t>(from) % 16) fail("a misaligned source of an asynchronous copy");
        own().copies.push_back({shared(to, 16), valid ? from : nullptr});
    }

    void commit() {
        Thread& thread = own();
        thread.committed.push_back(std::move(thread.copies));
        thread.copies.clear();
    }

    // Copies happen here and not before: a kernel that does not wait sees what was there.
    void wait_copies(size_t pending) {
        auto& groups = own().committed;
        while (groups.size() > pending) {
            for (const Copy& copy : groups.front()) {
                if (copy.from) std::memcpy(copy.to, copy.from, 16);
                else std::memset(copy.to, 0, 16);
            }
            groups.erase(groups.begin());
        }
    }

    [[noreturn]] void fail(const std::string& what) {
        if (failure_.empty()) {
            failure_ = what + " (thread " + std::to_string(running_) + " of block " + std::to_string(index.x) + ", " +
                       std::to_string(index.y) + ")";
        }
        own().state = State::ended;
        own().fiber.yield();
        std::abort();
    }

  private:
    enum class State { ready, at_barrier, at_exchange, ended };

    struct Copy {
        char* to;
        const void* from;
    };

    struct Thread {
        Fiber fiber;
        State state = State::ready;
        unsigned parity = 0;
        std::vector<Copy> copies;
        std::vector<std::vector<Copy>> committed;
    };

    struct Warp {
        // Two, so that who goes on does not write over what others still read.
        alignas(16) char messages[2][lanes][message_bytes];
        float sums[2][lanes];
        bool summed[2];
    };

    Thread& own() { return *threads_[running_]; }

    void wait(State state) {
        own().state = state;
        own().fiber.yield();
    }

    static void enter() {
        Block* block = current();
        block->body_(block->argument_);
        if (!block->own().copies.empty() || !block->own().committed.empty()) block->wait_copies(0);
        block->own().state = State::ended;
        block->own().fiber.yield();
        std::abort();
    }

    // Lets every thread that can go on do so, and releases those that have waited for each other. False at the end.
    bool step(unsigned threads) {
        for (unsigned t = 0; t < threads; t++) {
            if (threads_[t]->state != State::ready) continue;
            running_ = t;
            threads_[t]->fiber.resume();
            if (!failure_.empty()) return false;
        }
        unsigned ended = 0, at_barrier = 0, released = 0;
        for (unsigned first = 0; first < threads; first += lanes) {
            const unsigned last = std::min(first + lanes, threads);
            unsigned waiting = 0;
            for (unsigned t = first; t < last; t++) {
                waiting += threads_[t]->state == State::at_exchange;
                at_barrier += threads_[t]->state == State::at_barrier;
                ended += threads_[t]->state == State::ended;
            }
            if (waiting < lanes) continue;
            for (unsigned t = first; t < last; t++) threads_[t]->state = State::ready;
            released += waiting;
        }
        if (ended == threads) return false;
        if (released) return true;
        if (at_barrier == threads) {
            for (unsigned t = 0; t < threads; t++) threads_[t]->state = State::ready;
            return true;
        }
        failure_ = std::to_string(at_barrier) + " of " + std::to_string(threads) + " threads wait at a barrier, " + std::to_string(ended) +
                   " have ended, and the others wait for lanes of their warp (block " + std::to_string(index.x) + ", " +
                   std::to_string(index.y) + ")";
        return false;
    }

    std::vector<std::unique_ptr<Thread>> threads_;
    std::vector<Warp> warps_;
    std::vector<char> dynamic_;
    std::map<const void*, std::vector<char>> shared_;
    unsigned running_ = 0;
    void (*body_)(const void*) = nullptr;
    const void* argument_ = nullptr;
    std::string failure_;
};
