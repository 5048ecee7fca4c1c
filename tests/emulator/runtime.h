// Runs a CUDA launch on one CPU thread: every thread of a block is a fiber, blocks run one after another.
//
// It is made to find faults:
//
// - Order is random, by a seed. When a fiber waits, the next one is drawn from all that can run. The order of the blocks
//   is drawn, too. So is the moment at which an asynchronous copy or product takes effect, anywhere between its start and
//   the wait for it (cp.async: the barrier after the wait). With a missing barrier, or a read before the wait, some seed
//   gives wrong numbers.
// - Shared memory has random values or NaN before each block. It ends at an inaccessible page, or a few bytes before one,
//   which are checked.
// - Device buffers lie between inaccessible pages (mod.rs). An access outside of them ends the launch with an error. So do
//   a deadlock, lanes of a warp that meet in different collectives, a misaligned access, and violations of the rules of
//   asynchronous instructions, as far as they can be checked.
//
// Each .cu file becomes a shared library with this runtime in it. One launch runs at a time.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <deque>
#include <functional>
#include <vector>

namespace emulator {

constexpr uint32_t MAX_THREADS = 1024, WARP = 32, N_BARRIERS = 16;
constexpr size_t STACK_BYTES = 128 << 10, PAGE = 4096, SHARED_BYTES = 256 << 10;
constexpr uint8_t CANARY = 0xc5;

struct Index {
    uint32_t x, y, z;
};

// xorshift64* (Vigna).
struct Random {
    uint64_t state = 1;
    void seed(uint64_t seed) {
        state = (seed + 1) * 0x9e3779b97f4a7c15ull | 1;
        for (int i = 0; i < 4; ++i) bits();
    }
    uint32_t bits() {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return (uint32_t)(state * 0x2545f4914f6cdd1dull >> 32);
    }
    uint32_t below(uint32_t n) { return (uint32_t)((uint64_t)bits() * n >> 32); }
    bool coin() { return bits() & 1; }
};

struct Copy {
    void *to;
    const void *from;  // null: zeros
    void run() const {
        if (from) memcpy(to, from, 16);
        else memset(to, 0, 16);
    }
};

struct Fiber {
#if defined(__x86_64__)
    void *stack_pointer;
#else
    ucontext_t context;
#endif
    uint32_t id;
    Index thread;
    const char *waits_for;             // null if it can run
    std::vector<Copy> copies;          // cp.async, not committed
    std::deque<std::vector<Copy>> groups;
    std::vector<Copy> unseen;          // waited for, but no barrier has come since
};

// One wgmma of one warp.
typedef std::function<void()> Product;

struct Warp {
    void *args[WARP];
    uint32_t arrived;
    const char *collective;
    bool fenced;                       // wgmma.fence since the last wait
    std::vector<Product> products;     // wgmma, not committed
    std::deque<std::vector<Product>> groups;
};

struct NamedBarrier {
    uint32_t arrived, expected;
};

// An mbarrier, in shared memory.
struct BarrierState {
    uint32_t phase : 1, expected : 15, pending : 16;
    int32_t bytes;  // still to come
};
static_assert(sizeof(BarrierState) == 8);

// A copy of the copy engine.
struct Transfer {
    std::function<void()> run;
};

struct KernelEntry {
    const char *name;
    uint32_t threads;
    size_t params_bytes;
    void (*body)(const void *params);
};

struct Launch {
    const char *kernel;
    uint32_t blocks[3];
    uint32_t threads, shared_bytes;
    const void *params;
    uint64_t params_bytes, seed;
    uint32_t has_sm90;
    uint32_t aligned_sums;  // of tensor cores, as in sums.h
    uint32_t planted_fault;
    uint8_t **memory;  // (2): stacks and shared memory of all libraries, null until there are any
};

struct State {
    std::vector<KernelEntry> kernels;
    Random random;
    uint8_t *stacks = nullptr;         // (MAX_THREADS, STACK_BYTES), the first page of each inaccessible
    uint8_t *shared_memory = nullptr;  // SHARED_BYTES, then an inaccessible page
    uint8_t *shared = nullptr;
    uint32_t shared_bytes = 0;
    Fiber fibers[MAX_THREADS];
    Warp warps[MAX_THREADS / WARP];
    NamedBarrier barriers[N_BARRIERS];
    std::vector<BarrierState *> mbarriers;  // initialised ones
    size_t n_fenced = 0;                    // how many of them had a fence after they were initialised
    std::vector<Transfer> transfers;
    std::vector<Fiber *> runnable;
    Fiber *current = nullptr;
    const KernelEntry *kernel = nullptr;
    const void *params = nullptr;
    Index block;
    uint32_t n_threads = 0, n_live = 0;
    bool has_sm90 = false, aligned_sums = false;
    sigjmp_buf failed;
    char *error = nullptr;
    size_t error_bytes = 0;
#if defined(__x86_64__)
    void *scheduler;
#else
    ucontext_t scheduler;
#endif
};

// The fault of the source that is on (tests/kernels/faults.rs), 0 for none.
static uint32_t planted_fault [[maybe_unused]] = 0;

inline State &state() {
    static State *s = new State;
    return *s;
}

struct Registered {
    Registered(const char *name, uint32_t threads, size_t params_bytes, void (*body)(const void *)) {
        state().kernels.push_back({name, threads, params_bytes, body});
    }
};

// Ends the launch with an error.
[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail(const char *format, ...) {
    State &s = state();
    int n = snprintf(s.error, s.error_bytes, "block (%u, %u, %u)", s.block.x, s.block.y, s.block.z);
    if (s.current) n += snprintf(s.error + n, s.error_bytes - n, ", thread %u", s.current->id);
    n += snprintf(s.error + n, s.error_bytes - n, ": ");
    va_list args;
    va_start(args, format);
    vsnprintf(s.error + n, s.error_bytes - n, format, args);
    va_end(args);
    siglongjmp(s.failed, 1);
}

// ---- switching ------------------------------------------------------------------------------------------

#if defined(__x86_64__)
extern "C" void emulator_switch(void **save, void *load);
asm(".text\n.hidden emulator_switch\n.globl emulator_switch\n.type emulator_switch, @function\nemulator_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
#endif

inline void to_scheduler(Fiber &fiber) {
#if defined(__x86_64__)
    emulator_switch(&fiber.stack_pointer, state().scheduler);
#else
    swapcontext(&fiber.context, &state().scheduler);
#endif
}

inline void to_fiber(Fiber &fiber) {
#if defined(__x86_64__)
    emulator_switch(&state().scheduler, fiber.stack_pointer);
#else
    swapcontext(&state().scheduler, &fiber.context);
#endif
}

// Waits until wake() is called for it.
__attribute__((noinline)) inline void wait_for(const char *what) {
    Fiber &fiber = *state().current;
    fiber.waits_for = what;
    to_scheduler(fiber);
}

inline void wake(Fiber &fiber) {
    fiber.waits_for = nullptr;
    state().runnable.push_back(&fiber);
}

// Lets other fibers run.
inline void pause() {
    Fiber &fiber = *state().current;
    wake(fiber);
    to_scheduler(fiber);
}

inline void thread_main() {
    State &s = state();
    s.kernel->body(s.params);
    Fiber &fiber = *s.current;
    const Warp &warp = s.warps[fiber.id / WARP];
    if (!warp.products.empty() || !warp.groups.empty()) fail("exits with wgmma under way");
    fiber.waits_for = "nothing, it has ended";
    --s.n_live;
    to_scheduler(fiber);
    abort();
}

// ---- the block ------------------------------------------------------------------------------------------

inline void run_transfer(size_t at) {
    State &s = state();
    const Transfer transfer = s.transfers[at];
    s.transfers[at] = s.transfers.back();
    s.transfers.pop_back();
    transfer.run();
}

inline void run_block(Index block) {
    State &s = state();
    s.block = block;
    s.current = nullptr;
    const size_t slack = (1024 - s.shared_bytes % 1024) % 1024;
    s.shared = s.shared_memory + SHARED_BYTES - s.shared_bytes - slack;
    if (s.random.coin()) memset(s.shared, 0xff, s.shared_bytes);  // NaN
    else for (uint32_t i = 0; i + 4 <= s.shared_bytes; i += 4) ((uint32_t *)s.shared)[i / 4] = s.random.bits();
    memset(s.shared + s.shared_bytes, CANARY, slack);

    memset(s.barriers, 0, sizeof(s.barriers));
    s.mbarriers.clear();
    s.n_fenced = 0;
    s.transfers.clear();
    s.runnable.clear();
    for (uint32_t w = 0; w < s.n_threads / WARP; ++w) {
        Warp &warp = s.warps[w];
        warp.arrived = 0;
        warp.fenced = false;
        warp.products.clear();
        warp.groups.clear();
    }
    for (uint32_t i = 0; i < s.n_threads; ++i) {
        Fiber &fiber = s.fibers[i];
        fiber.id = i;
        fiber.thread = {i, 0, 0};
        fiber.copies.clear();
        fiber.groups.clear();
        fiber.unseen.clear();
        uint8_t *stack = s.stacks + i * STACK_BYTES;
#if defined(__x86_64__)
        // Stacks begin at different offsets, an odd number of cache lines apart. At the same offset all of them would
        // share a few sets of the CPU's cache.
        void **top = (void **)(stack + STACK_BYTES - i * 21 * 64 % (STACK_BYTES / 2));
        *--top = nullptr;  // where thread_main would return to
        *--top = (void *)thread_main;
        for (int r = 0; r < 6; ++r) *--top = nullptr;
        fiber.stack_pointer = top;
#else
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = stack + PAGE;
        fiber.context.uc_stack.ss_size = STACK_BYTES - PAGE;
        makecontext(&fiber.context, thread_main, 0);
#endif
        wake(fiber);
    }
    s.n_live = s.n_threads;
    // If all fibers were drawn with the same probability, they would advance together, and a missing wait would often do
    // no harm. So in half of the blocks a quarter of the warps hardly run while others can. In half of the blocks copies
    // are late in the same way.
    const uint32_t slow_warps = s.random.coin() ? s.random.bits() & s.random.bits() : 0;
    const uint32_t copy_interval = s.random.coin() ? 4 : 1024;
    while (s.n_live > 0) {
        if (!s.transfers.empty() && (s.runnable.empty() || s.random.below(copy_interval) == 0)) {
            run_transfer(s.random.below((uint32_t)s.transfers.size()));
            continue;
        }
        if (s.runnable.empty()) {
            for (uint32_t i = 0; i < s.n_threads; ++i) {
                s.current = &s.fibers[i];
                if (strncmp(s.current->waits_for, "nothing", 7) != 0)
                    fail("deadlock: waits for %s", s.current->waits_for);
            }
        }
        uint32_t at = s.random.below((uint32_t)s.runnable.size());
        for (int again = 0; again < 16 && slow_warps >> s.runnable[at]->id / WARP & 1; ++again)
            at = s.random.below((uint32_t)s.runnable.size());
        s.current = s.runnable[at];
        s.runnable[at] = s.runnable.back();
        s.runnable.pop_back();
        to_fiber(*s.current);
    }
    s.current = nullptr;
    if (!s.transfers.empty()) fail("ends with a copy to its shared memory under way");
    for (const BarrierState *b : s.mbarriers)
        if (b->bytes != 0) fail("ends with %d bytes more expected than came", b->bytes);
    for (uint32_t i = 0; i < N_BARRIERS; ++i)
        if (s.barriers[i].arrived > 0) fail("ends with %u threads counted at barrier %u", s.barriers[i].arrived, i);
    for (size_t i = 0; i < slack; ++i)
        if (s.shared[s.shared_bytes + i] != CANARY) fail("writes %zu bytes past its shared memory", i);
}

// ---- a launch -------------------------------------------------------------------------------------------

inline void on_signal(int signal, siginfo_t *info, void *) {
    const uintptr_t at = (uintptr_t)info->si_addr;
    const State &s = state();
    if (at >= (uintptr_t)s.stacks && at < (uintptr_t)s.stacks + MAX_THREADS * STACK_BYTES) fail("stack overflow");
    if (at >= (uintptr_t)s.shared_memory && at < (uintptr_t)s.shared_memory + SHARED_BYTES + PAGE)
        fail("access past shared memory");
    if (signal == SIGILL || at == 0) fail("misaligned access, or a null pointer");
    fail("access outside of every buffer, at %#zx", (size_t)at);
}

// All libraries share this memory. It takes thousands of mappings, and a process may have 65,530.
inline void prepare(State &s, uint8_t **memory) {
    s.stacks = memory[0];
    s.shared_memory = memory[1];
    if (s.stacks) return;
    s.stacks = (uint8_t *)mmap(nullptr, MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    s.shared_memory = (uint8_t *)mmap(nullptr, SHARED_BYTES + PAGE, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (s.stacks == MAP_FAILED || s.shared_memory == MAP_FAILED) abort();
    for (uint32_t i = 0; i < MAX_THREADS; ++i) mprotect(s.stacks + i * STACK_BYTES, PAGE, PROT_NONE);
    mprotect(s.shared_memory + SHARED_BYTES, PAGE, PROT_NONE);
    memory[0] = s.stacks;
    memory[1] = s.shared_memory;
}

inline void run_launch(const Launch &launch) {
    State &s = state();
    s.kernel = nullptr;
    for (const KernelEntry &kernel : s.kernels)
        if (strcmp(kernel.name, launch.kernel) == 0) s.kernel = &kernel;
    s.block = {0, 0, 0};
    if (!s.kernel) fail("no such kernel");
    if (strstr(launch.kernel, "_sm90") && !launch.has_sm90) fail("a kernel for sm_90a only");
    if (launch.threads > s.kernel->threads || launch.threads % WARP != 0 || launch.threads == 0)
        fail("%u threads, launch bounds are %u", launch.threads, s.kernel->threads);
    if (launch.params_bytes != s.kernel->params_bytes)
        fail("%zu bytes of parameters, expected %zu", (size_t)launch.params_bytes, s.kernel->params_bytes);
    if (launch.shared_bytes > 227 * 1024) fail("%u bytes of shared memory", launch.shared_bytes);
    s.params = launch.params;
    s.shared_bytes = launch.shared_bytes;
    s.n_threads = launch.threads;
    s.has_sm90 = launch.has_sm90;
    s.aligned_sums = launch.aligned_sums;
    planted_fault = launch.planted_fault;
    s.random.seed(launch.seed);
    const uint64_t n = (uint64_t)launch.blocks[0] * launch.blocks[1] * launch.blocks[2];
    if (n == 0 || launch.blocks[1] > 65535 || launch.blocks[2] > 65535) fail("a grid that CUDA refuses");
    std::vector<uint64_t> order(n);
    for (uint64_t i = 0; i < n; ++i) {
        const uint64_t j = s.random.below((uint32_t)(i + 1));
        order[i] = order[j];
        order[j] = i;
    }
    for (const uint64_t i : order) {
        const uint64_t x = i % launch.blocks[0], yz = i / launch.blocks[0];
        run_block({(uint32_t)x, (uint32_t)(yz % launch.blocks[1]), (uint32_t)(yz / launch.blocks[1])});
    }
}

// Returns 0, or 1 and a text in `error`.
inline int launch(const Launch &launch, char *error, size_t error_bytes) {
    static uint8_t signal_stack[64 << 10];
    constexpr int SIGNALS[4] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    State &s = state();
    prepare(s, launch.memory);
    s.error = error;
    s.error_bytes = error_bytes;
    s.current = nullptr;
    stack_t stack = {}, old_stack;
    stack.ss_sp = signal_stack;
    stack.ss_size = sizeof(signal_stack);
    sigaltstack(&stack, &old_stack);
    struct sigaction action = {}, old_actions[4];
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 4; ++i) sigaction(SIGNALS[i], &action, &old_actions[i]);
    const int failed = sigsetjmp(s.failed, 1);
    if (!failed) run_launch(launch);
    for (int i = 0; i < 4; ++i) sigaction(SIGNALS[i], &old_actions[i], nullptr);
    sigaltstack(&old_stack, nullptr);
    return failed;
}

// ---- meeting points -------------------------------------------------------------------------------------

// All lanes of a warp meet; the last to come runs `run` on the arguments of all.
template <typename Args, typename Run> inline void collective(const char *name, Args &args, Run run) {
    State &s = state();
    const uint32_t id = s.current->id;
    Warp &warp = s.warps[id / WARP];
    if (warp.arrived > 0 && warp.collective != name && strcmp(warp.collective, name) != 0)
        fail("meets %s while other lanes of its warp are at %s", name, warp.collective);
    warp.collective = name;
    warp.args[id % WARP] = &args;
    if (++warp.arrived < WARP) return wait_for(name);
    warp.arrived = 0;
    run((Args **)warp.args);
    for (uint32_t lane = 0; lane < WARP; ++lane)
        if (lane != id % WARP) wake(s.fibers[id / WARP * WARP + lane]);
    pause();
}

// From here on all threads see the copies that this thread has waited for.
inline void show_copies() {
    Fiber &fiber = *state().current;
    for (const Copy &copy : fiber.unseen) copy.run();
    fiber.unseen.clear();
}

// With `wait` false the thread is counted, but does not wait.
inline void barrier(uint32_t id, uint32_t threads, bool wait = true) {
    State &s = state();
    if (id >= N_BARRIERS || threads % WARP != 0 || threads > s.n_threads) fail("barrier %u of %u", id, threads);
    NamedBarrier &barrier = s.barriers[id];
    if (barrier.arrived > 0 && barrier.expected != threads)
        fail("barrier %u of %u threads, others expect %u", id, threads, barrier.expected);
    static const char *const NAMES[N_BARRIERS] = {
        "barrier 0", "barrier 1", "barrier 2",  "barrier 3",  "barrier 4",  "barrier 5",  "barrier 6",  "barrier 7",
        "barrier 8", "barrier 9", "barrier 10", "barrier 11", "barrier 12", "barrier 13", "barrier 14", "barrier 15"};
    barrier.expected = threads;
    show_copies();
    if (++barrier.arrived < threads) return wait ? wait_for(NAMES[id]) : pause();
    barrier.arrived = 0;
    for (uint32_t i = 0; i < s.n_threads; ++i)
        if (s.fibers[i].waits_for == NAMES[id]) wake(s.fibers[i]);
    pause();
}

// Checks that `bytes` of shared memory lie at `at`, aligned.
inline void check_shared(const void *at, size_t bytes, size_t align, const char *what) {
    const State &s = state();
    const uint8_t *p = (const uint8_t *)at;
    if (p < s.shared || p + bytes > s.shared + s.shared_bytes)
        fail("%s: %zd is outside of %u bytes of shared memory", what, p - s.shared, s.shared_bytes);
    if ((p - s.shared) % align != 0) fail("%s: %zd is not aligned to %zu", what, p - s.shared, align);
}

}  // namespace emulator

extern "C" __attribute__((visibility("default"))) int emulator_launch(const emulator::Launch *launch, char *error,
                                                                      uint64_t error_bytes) {
    return emulator::launch(*launch, error, error_bytes);
}
