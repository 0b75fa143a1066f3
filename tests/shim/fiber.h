// A GPU on one CPU thread, for tests: every thread of a workgroup is a fiber. A barrier or a collective of a warp gives the turn to the next
// fiber until all have arrived. Workgroups run one after another. Whatever depends on the order of either shows when both are reversed.
//
// Reported, with kernel, workgroup and thread, and ending the process: warps that diverge at a collective, threads that end while others wait,
// accesses outside of buffers and of workgroup memory (guard pages) and of a thread's arrays (-fsanitize=bounds).
#pragma once
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>
#include <type_traits>
#include <utility>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace shim {

struct Index {
    unsigned x = 0, y = 0, z = 0;
};

const unsigned WIDTH = 32;
const size_t STACK = 128 << 10;

enum class State { Ready, AtCollective, AtBarrier, Ended };

#if defined(__x86_64__)
// Stack switching: what a call must preserve is pushed, the rest the compiler saves.
typedef void* Context;
extern "C" void shim_switch(Context* from, Context to);
asm(R"(
.text
.globl shim_switch
shim_switch:
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
)");
inline void switch_context(Context& from, Context& to) { shim_switch(&from, to); }
inline void start_context(Context& context, char* stack, void (*entry)()) {
    void** top = (void**)((uintptr_t)(stack + STACK) & ~(uintptr_t)15);
    *--top = nullptr;
    *--top = (void*)entry;
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    context = top;
}
#else
typedef ucontext_t Context;
inline void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }
inline void start_context(Context& context, char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
#endif

struct Fiber {
    Context context;
    char* stack;
    State state;
};

// A collective under way: what each lane brought, twice, since a fast lane may be at the next one before a slow one has looked.
struct Warp {
    unsigned char brought[2][WIDTH][8];
    unsigned arrived, turn;
    const char* op;
};

struct Launch {
    const char* kernel = "(none)";
    Index group, groups;
    unsigned threads = 0, current = 0;
    bool reverse = false;
    void (*call)(void**) = nullptr;
    void** args = nullptr;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Context scheduler;
};
inline Launch now;

[[noreturn]] inline void fail(const char* format, ...) {
    char what[256];
    va_list list;
    va_start(list, format);
    vsnprintf(what, sizeof what, format, list);
    va_end(list);
    fprintf(stderr, "%s, workgroup (%u, %u, %u), thread %u: %s\n", now.kernel, now.group.x, now.group.y, now.group.z, now.current, what);
    fflush(stderr);
    _exit(3);
}

inline void yield() { switch_context(now.fibers[now.current].context, now.scheduler); }

inline void entry() {
    now.call(now.args);
    now.fibers[now.current].state = State::Ended;
    yield();
    abort();
}

inline void barrier() {
    now.fibers[now.current].state = State::AtBarrier;
    yield();
}

// What every lane of the warp brings to `op`. All lanes must come: stricter than some GPUs, as strict as the strictest.
template <class T>
inline T exchange(T value, unsigned from, const char* op) {
    static_assert(sizeof(T) <= 8);
    const unsigned lane = now.current % WIDTH, first = now.current - lane;
    Warp& warp = now.warps[now.current / WIDTH];
    const unsigned turn = warp.turn;
    if (warp.arrived && strcmp(warp.op, op)) fail("the warp diverges: %s here, %s in other lanes", op, warp.op);
    memcpy(warp.brought[turn & 1][lane], &value, sizeof value);
    warp.op = op;
    if (++warp.arrived == WIDTH) {
        warp.arrived = 0;
        ++warp.turn;
        for (unsigned i = 0; i < WIDTH; ++i) now.fibers[first + i].state = State::Ready;
    } else {
        now.fibers[now.current].state = State::AtCollective;
        yield();
    }
    T out;
    memcpy(&out, warp.brought[turn & 1][from % WIDTH], sizeof out);
    return out;
}

// Memory of the device: it ends at a page that nobody may touch, and begins behind one.
struct Memory {
    char* pages = nullptr;
    size_t mapped = 0, bytes = 0;
    char* data = nullptr;

    void allocate(size_t wanted) {
        release();
        const size_t page = (size_t)sysconf(_SC_PAGESIZE), inner = (wanted + page - 1) / page * page;
        mapped = inner + 2 * page, bytes = wanted;
        pages = (char*)mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pages == MAP_FAILED) fail("no memory for %zu bytes", wanted);
        mprotect(pages, page, PROT_NONE);
        mprotect(pages + page + inner, page, PROT_NONE);
        // Kernels load 16 bytes at once: the end is aligned like every allocation of a GPU.
        data = pages + page + inner - (wanted + 15) / 16 * 16;
        memset(data, 0xff, wanted);
    }
    void release() {
        if (pages) munmap(pages, mapped);
        pages = nullptr;
    }
};

// Memory of workgroups. They run one after another, so that of a kernel stands in one place; each finds no numbers in it.
struct Shared {
    void (*kernel)(void**);
    Memory memory;
};
inline std::vector<Shared> shared_memory;
inline void* shared(size_t bytes) {
    shared_memory.push_back({now.call, {}});
    shared_memory.back().memory.allocate(bytes);
    return shared_memory.back().memory.data;
}
#define SHIM_SHARED(T, name, count) static T* const name = (T*)shim::shared(sizeof(T) * (count))

inline void run_group() {
    const unsigned n = now.threads;
    for (unsigned i = 0; i < n; ++i) {
        start_context(now.fibers[i].context, now.fibers[i].stack, entry);
        now.fibers[i].state = State::Ready;
    }
    for (Warp& warp : now.warps) warp.arrived = warp.turn = 0;
    for (Shared& s : shared_memory) {
        if (s.kernel == now.call) memset(s.memory.data, 0xff, s.memory.bytes);
    }
    for (;;) {
        unsigned ran = 0, ended = 0, waiting = 0;
        for (unsigned k = 0; k < n; ++k) {
            const unsigned i = now.reverse ? n - 1 - k : k;
            Fiber& fiber = now.fibers[i];
            if (fiber.state == State::Ready) {
                now.current = i;
                switch_context(now.scheduler, fiber.context);
                ++ran;
            }
        }
        for (const Fiber& fiber : now.fibers) {
            ended += fiber.state == State::Ended;
            waiting += fiber.state == State::AtBarrier;
        }
        if (ended == n) return;
        if (waiting == n) {
            for (Fiber& fiber : now.fibers) fiber.state = State::Ready;
        } else if (!ran) {
            fail("deadlock: %u of %u threads wait at a barrier, %u at a collective, %u have ended", waiting, n, n - waiting - ended, ended);
        }
    }
}

inline void run(const char* kernel, void (*call)(void**), void** args, Index groups, unsigned threads, bool reverse) {
    if (threads == 0 || threads % WIDTH) fail("%u threads are no whole warps", threads);
    while (now.fibers.size() > threads) {
        munmap(now.fibers.back().stack, STACK);
        now.fibers.pop_back();
    }
    while (now.fibers.size() < threads) {
        Fiber fiber{};
        fiber.stack = (char*)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        now.fibers.push_back(fiber);
    }
    now.warps.resize(threads / WIDTH);
    now.kernel = kernel, now.call = call, now.args = args, now.groups = groups, now.threads = threads, now.reverse = reverse;
    const uint64_t count = (uint64_t)groups.x * groups.y * groups.z;
    for (uint64_t i = 0; i < count; ++i) {
        const uint64_t g = reverse ? count - 1 - i : i;
        now.group = {(unsigned)(g % groups.x), (unsigned)(g / groups.x % groups.y), (unsigned)(g / groups.x / groups.y)};
        run_group();
    }
    now.kernel = "(none)";
}

inline void on_signal(int signal, siginfo_t* info, void*) {
    if (signal == SIGILL) fail("an index outside of an array");
    fail("an access outside of every buffer, at %p", info->si_addr);
}

inline void catch_faults() {
    static char stack[64 << 10];
    stack_t alternate{};
    alternate.ss_sp = stack, alternate.ss_size = sizeof stack;
    sigaltstack(&alternate, nullptr);
    struct sigaction action{};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE}) sigaction(signal, &action, nullptr);
}

inline float f16_to_f32(uint16_t bits) {
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    float x;
    uint32_t wide = rest << 13;
    memcpy(&x, &wide, 4);
    x *= 0x1p112f;
    if (rest >= 0x7c00u) {
        wide |= 0x7f800000u;
        memcpy(&x, &wide, 4);
    }
    memcpy(&wide, &x, 4);
    wide |= sign;
    memcpy(&x, &wide, 4);
    return x;
}

// Rounds to nearest even.
inline uint16_t f32_to_f16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return sign | 0x7e00u;
    if (bits >= 0x477ff000u) return sign | 0x7c00u;
    if (bits < 0x38800000u) {
        float magnitude;
        memcpy(&magnitude, &bits, 4);
        return sign | (uint16_t)__builtin_rintf(magnitude * 0x1p24f);
    }
    bits += 0xfffu + (bits >> 13 & 1u);
    return sign | (uint16_t)((bits - 0x38000000u) >> 13);
}

// A kernel as a function of its pointers. What is no pointer is the place of the thread.
template <class T>
T argument(void** args, size_t at);

template <auto K>
struct Bind;
template <class... A, void (*K)(A...)>
struct Bind<K> {
    static const unsigned pointers = (0 + ... + (std::is_pointer_v<A> ? 1 : 0));
    template <size_t... I>
    static void spread(void** args, std::index_sequence<I...>) {
        K(argument<A>(args, I)...);
    }
    static void call(void** args) { spread(args, std::index_sequence_for<A...>()); }
};

struct Entry {
    const char* name;
    unsigned pointers;
    void (*call)(void**);
};

// A text as a shared library (module.h).
struct Module {
    const char* arch;
    const Entry* kernels;
    size_t count;
    void (*run)(const char* kernel, void (*call)(void**), void** args, Index groups, unsigned threads, bool reverse);
    void (*catch_faults)();
};
#define SHIM_KERNEL(name) {#name, shim::Bind<name>::pointers, shim::Bind<name>::call}

}  // namespace shim
