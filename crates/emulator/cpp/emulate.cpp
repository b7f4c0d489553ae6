// What Rust calls: memory with guards, and launches.

#include "block.hpp"
#include "registry.hpp"

#include <csignal>
#include <cstdio>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

namespace {

const char* launched = "";

// An access outside of what was allocated: what ran is told, and the process ends as it would have.
void on_fault(int signal) {
    char line[256];
    const Block* block = Block::current();
    const Index thread = block ? block->thread() : Index{}, index = block ? block->index : Index{};
    const int length = std::snprintf(line, sizeof line, "kernel %s: an access to memory that is not its own (thread %u of block %u, %u)\n",
                                     launched, thread.x, index.x, index.y);
    if (write(2, line, length) < 0) _exit(1);
    std::signal(signal, SIG_DFL);
    std::raise(signal);
}

size_t page_bytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

size_t rounded(size_t bytes) { return (bytes + page_bytes() - 1) / page_bytes() * page_bytes(); }

}  // namespace

// Memory that ends, but for what alignment to 256 bytes takes, where a page begins that nobody may touch; one such page lies
// before it. Filled with NaN. Null where there is none.
extern "C" void* nexus_emulator_allocate(size_t bytes) {
    const size_t inner = rounded(bytes), page = page_bytes();
    char* all = static_cast<char*>(mmap(nullptr, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (all == MAP_FAILED) return nullptr;
    if (mprotect(all + page, inner, PROT_READ | PROT_WRITE)) return nullptr;
    std::memset(all + page, 0xff, inner);
    return all + page + (inner - bytes) / 256 * 256;
}

extern "C" void nexus_emulator_free(void* memory, size_t bytes) {
    const size_t inner = rounded(bytes), page = page_bytes();
    char* start = static_cast<char*>(memory) - (inner - bytes) / 256 * 256;
    munmap(start - page, inner + 2 * page);
}

// Runs a kernel; `arguments` are pointers, as a driver takes them. What went wrong is written to `message`, and 1 is returned.
extern "C" int nexus_emulator_launch(const char* name, unsigned grid_x, unsigned grid_y, unsigned threads, size_t shared_bytes,
                                     void* const* arguments, size_t count, char* message, size_t message_bytes) {
    const auto tell = [&](const std::string& what) {
        std::snprintf(message, message_bytes, "%s", what.c_str());
        return 1;
    };
    const auto found = registry().find(name);
    if (found == registry().end()) return tell("there is no such kernel");
    const Registration& kernel = found->second;
    if (kernel.threads != threads) return tell("it is written for blocks of " + std::to_string(kernel.threads) + " threads");
    if (kernel.arguments != count) return tell("it takes " + std::to_string(kernel.arguments) + " arguments");
    static const bool watched = [] {
        std::signal(SIGSEGV, on_fault);
        std::signal(SIGBUS, on_fault);
        return true;
    }();
    (void)watched;
    launched = name;
    static thread_local Block block;
    block.grid = {grid_x, grid_y, 1};
    try {
        // From the last to the first: no kernel may count on another order.
        for (unsigned y = grid_y; y-- > 0;) {
            for (unsigned x = grid_x; x-- > 0;) {
                block.index = {x, y, 0};
                block.run(threads, shared_bytes, [&] { kernel.call(arguments); });
            }
        }
    } catch (const Misuse& misuse) {
        return tell(misuse.message);
    }
    return 0;
}
