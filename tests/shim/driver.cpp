// A CUDA driver for tests: libcuda.so.1 with the functions that the runtime calls. Kernels are shared libraries of the host (nvrtc.cpp)
// whose threads are fibers; memory is the host's, with pages that nobody may touch around every allocation.
//
// It is as late and as strict as a driver may be. What is put on a stream runs only when somebody waits for it; copies from pageable
// memory are taken at once, and those from pinned memory at the last moment; a call on a thread without a context is refused; memory that
// was given back to a pool is free again only when somebody waits.
//
// Its machine is described by variables that no real driver reads:
//   FAKE_CUDA_VERSION      what the driver supports, 13000 by default
//   FAKE_CUDA_DEVICES      how many GPUs there are, 1 by default
//   FAKE_CUDA_CAPABILITY   80 by default
//   FAKE_CUDA_MEMORY       bytes of a GPU, 4 GiB by default
//   FAKE_CUDA_POOLS        whether memory comes in the order of a stream, from a pool: 1 by default, as on every GPU of today
//   FAKE_CUDA_BROKEN       1 lets every hundredth kernel not run
//   FAKE_CUDA_LOG          a file for what was done: a line a count, written when the process ends
#include "fiber.h"
#include "toolchain.h"
#include <deque>
#include <dlfcn.h>
#include <elf.h>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sys/syscall.h>

#define API extern "C" __attribute__((visibility("default"))) int

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_PTX = 218,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
};

typedef unsigned long long Address;

static long setting(const char* name, long otherwise) {
    const char* value = getenv(name);
    return value ? atol(value) : otherwise;
}

// A kernel and where it is launched.
struct Function {
    const shim::Module* module;
    const shim::Entry* entry;
};
struct Launch {
    const Function* function;
    shim::Index groups;
    unsigned threads;
    std::vector<void*> pointers;
};

struct Stream {
    std::deque<std::function<void()>> work;
    bool records = false;
    std::vector<Launch> recorded;
};
struct Event {
    Stream* stream = nullptr;
    bool done = true;
    double at = 0;
};
struct Graph {
    std::vector<Launch> launches;
};

// Everything, behind one lock.
static std::recursive_mutex lock;
static std::set<Stream*> streams;
static std::set<Event*> events;
static std::set<Graph*> graphs;
static std::map<Address, shim::Memory> memories;
static std::map<char*, size_t> pinned;
static std::map<std::string, unsigned long> counts;
static size_t used, peak;
// Allocations whose pages a pool keeps until somebody waits.
static std::vector<Address> returned;
static int failure;
static thread_local void* context;
static char primary;


#define GUARD std::lock_guard<std::recursive_mutex> guard(lock)
#define IN_CONTEXT \
    GUARD;         \
    if (!context) return INVALID_CONTEXT; \
    if (failure) return failure

static size_t limit() { return (size_t)setting("FAKE_CUDA_MEMORY", 4l << 30); }

// The allocation that holds all of a range.
static bool holds(Address at, size_t len) {
    auto next = memories.upper_bound(at);
    if (next == memories.begin()) return false;
    auto& [start, memory] = *--next;
    return at - start <= memory.bytes && len <= memory.bytes - (at - start);
}
static bool is_pinned(const void* at) {
    auto next = pinned.upper_bound((char*)at);
    return next != pinned.begin() && (const char*)at < (--next)->first + next->second;
}

static void drain(Stream* stream) {
    while (!stream->work.empty()) {
        auto work = std::move(stream->work.front());
        stream->work.pop_front();
        work();
    }
}
static void release(Address at) {
    auto found = memories.find(at);
    used -= found->second.bytes;
    found->second.release();
    memories.erase(found);
}
// What every call that waits ends with.
static int waited() {
    for (Address at : returned) release(at);
    returned.clear();
    return failure;
}
struct Report {
    ~Report() {
        const char* path = getenv("FAKE_CUDA_LOG");
        FILE* file = path ? fopen(path, "w") : nullptr;
        if (!file) return;
        waited();
        counts["bytes_left"] = used;
        counts["bytes_peak"] = peak;
        for (auto& [what, count] : counts) fprintf(file, "%s %lu\n", what.c_str(), count);
        fclose(file);
    }
};
static Report report;
static int put(Stream* stream, std::function<void()> work) {
    if (!streams.count(stream)) return INVALID_HANDLE;
    if (stream->records) return CAPTURE_UNSUPPORTED;
    stream->work.push_back(std::move(work));
    return SUCCESS;
}
static void run(const Launch& launch) {
    // The pointers may have been freed since.
    for (void* pointer : launch.pointers) {
        if (!holds((Address)pointer, 1)) failure = ILLEGAL_ADDRESS;
    }
    if (failure) return;
    if (++counts["kernels_run"] % 100 == 0 && setting("FAKE_CUDA_BROKEN", 0)) return;
    std::vector<void*> args = launch.pointers;
    const shim::Entry* entry = launch.function->entry;
    launch.function->module->run(entry->name, entry->call, args.data(), launch.groups, launch.threads, false);
}

// --- driver and devices

API cuInit(unsigned) { return setting("FAKE_CUDA_DEVICES", 1) > 0 ? SUCCESS : NO_DEVICE; }
API cuDriverGetVersion(int* version) { return *version = (int)setting("FAKE_CUDA_VERSION", 13000), SUCCESS; }
API cuDeviceGetCount(int* count) { return *count = (int)setting("FAKE_CUDA_DEVICES", 1), SUCCESS; }
API cuDeviceGet(int* device, int ordinal) {
    if (ordinal < 0 || ordinal >= setting("FAKE_CUDA_DEVICES", 1)) return INVALID_DEVICE;
    return *device = ordinal, SUCCESS;
}
API cuDeviceGetName(char* name, int len, int) { return snprintf(name, len, "fibers on a CPU"), SUCCESS; }
API cuDeviceGetAttribute(int* value, int attribute, int) {
    const int capability = (int)setting("FAKE_CUDA_CAPABILITY", 80);
    switch (attribute) {
        case 75: *value = capability / 10; break;
        case 76: *value = capability % 10; break;
        case 115: *value = (int)setting("FAKE_CUDA_POOLS", 1); break;
        default: *value = 0;
    }
    return SUCCESS;
}
API cuDevicePrimaryCtxRetain(void** out, int) { return *out = &primary, SUCCESS; }
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API cuCtxSetCurrent(void* to) { return context = to, SUCCESS; }
API cuCtxGetCurrent(void** out) { return *out = context, SUCCESS; }
API cuCtxSynchronize() {
    IN_CONTEXT;
    for (Stream* stream : streams) drain(stream);
    return waited();
}

// --- streams and events

API cuStreamCreate(Stream** out, unsigned) {
    IN_CONTEXT;
    streams.insert(*out = new Stream);
    return SUCCESS;
}
API cuStreamDestroy_v2(Stream* stream) {
    GUARD;
    if (!streams.erase(stream)) return INVALID_HANDLE;
    drain(stream);
    delete stream;
    return SUCCESS;
}
API cuStreamSynchronize(Stream* stream) {
    IN_CONTEXT;
    if (!streams.count(stream)) return INVALID_HANDLE;
    if (stream->records) return CAPTURE_UNSUPPORTED;
    ++counts["waits"];
    drain(stream);
    return waited();
}
API cuEventCreate(Event** out, unsigned) {
    IN_CONTEXT;
    events.insert(*out = new Event);
    return SUCCESS;
}
API cuEventRecord(Event* event, Stream* stream) {
    IN_CONTEXT;
    if (!events.count(event)) return INVALID_HANDLE;
    event->stream = stream, event->done = false;
    return put(stream, [event] {
        timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (events.count(event)) event->done = true, event->at = now.tv_sec * 1e3 + now.tv_nsec * 1e-6;
    });
}
API cuEventSynchronize(Event* event) {
    IN_CONTEXT;
    if (!events.count(event)) return INVALID_HANDLE;
    while (!event->done && !event->stream->work.empty()) {
        auto work = std::move(event->stream->work.front());
        event->stream->work.pop_front();
        work();
    }
    return waited();
}
API cuEventElapsedTime_v2(float* milliseconds, Event* start, Event* end) {
    GUARD;
    if (!events.count(start) || !events.count(end)) return INVALID_HANDLE;
    return *milliseconds = (float)(end->at - start->at), SUCCESS;
}
API cuEventElapsedTime(float* milliseconds, Event* start, Event* end) { return cuEventElapsedTime_v2(milliseconds, start, end); }
API cuEventDestroy_v2(Event* event) {
    GUARD;
    if (!events.erase(event)) return INVALID_HANDLE;
    if (event->stream && streams.count(event->stream)) drain(event->stream);
    delete event;
    return SUCCESS;
}

// --- memory

API cuMemAlloc_v2(Address* out, size_t bytes) {
    IN_CONTEXT;
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > limit() - used) return OUT_OF_MEMORY;
    shim::Memory memory;
    memory.allocate(bytes);
    used += bytes;
    peak = used > peak ? used : peak;
    *out = (Address)memory.data;
    memories[*out] = memory;
    return SUCCESS;
}
API cuMemFree_v2(Address at) {
    GUARD;
    for (Stream* stream : streams) drain(stream);
    if (!memories.count(at)) return INVALID_VALUE;
    release(at);
    return SUCCESS;
}
API cuMemAllocAsync(Address* out, size_t bytes, Stream* stream) {
    IN_CONTEXT;
    if (!streams.count(stream)) return INVALID_HANDLE;
    if (stream->records) return CAPTURE_UNSUPPORTED;
    const int status = cuMemAlloc_v2(out, bytes);
    if (status == SUCCESS) ++counts["pool_allocations"];
    return status;
}
API cuMemFreeAsync(Address at, Stream* stream) {
    GUARD;
    if (!memories.count(at)) return INVALID_VALUE;
    return put(stream, [at] { returned.push_back(at); });
}
API cuMemGetInfo_v2(size_t* unused, size_t* total) {
    IN_CONTEXT;
    return *total = limit(), *unused = limit() - used, SUCCESS;
}
API cuMemHostAlloc(void** out, size_t bytes, unsigned) {
    IN_CONTEXT;
    *out = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    pinned[(char*)*out] = bytes;
    return SUCCESS;
}
API cuMemFreeHost(void* at) {
    GUARD;
    for (Stream* stream : streams) drain(stream);
    if (!pinned.erase((char*)at)) return INVALID_VALUE;
    free(at);
    return SUCCESS;
}
API cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, Stream* stream) {
    IN_CONTEXT;
    if (!holds(to, bytes)) return INVALID_VALUE;
    ++counts["copies_to"];
    counts["bytes_to"] += bytes;
    if (is_pinned(from)) return put(stream, [=] { memcpy((void*)to, from, bytes); });
    std::string taken((const char*)from, bytes);
    return put(stream, [=] { memcpy((void*)to, taken.data(), bytes); });
}
API cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, Stream* stream) {
    IN_CONTEXT;
    if (!holds(from, bytes)) return INVALID_VALUE;
    ++counts["copies_from"];
    const int status = put(stream, [=] { memcpy(to, (void*)from, bytes); });
    if (status == SUCCESS && !is_pinned(to)) drain(stream);
    return status;
}
API cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Stream* stream) {
    IN_CONTEXT;
    if (!holds(to, bytes) || !holds(from, bytes)) return INVALID_VALUE;
    return put(stream, [=] { memmove((void*)to, (void*)from, bytes); });
}
API cuMemsetD8Async(Address to, unsigned char value, size_t bytes, Stream* stream) {
    IN_CONTEXT;
    if (!holds(to, bytes)) return INVALID_VALUE;
    return put(stream, [=] { memset((void*)to, value, bytes); });
}

// --- kernels

struct Loaded {
    void* library;
    std::map<std::string, Function> functions;
};

// Whether machine code for `arch` runs on the device, or was compiled on it.
static bool runs(const std::string& arch) {
    const int capability = (int)setting("FAKE_CUDA_CAPABILITY", 80), own = atoi(arch.c_str() + arch.find('_') + 1);
    return arch.back() == 'a' ? own == capability : own / 10 == capability / 10 && own <= capability;
}

API cuModuleLoadData(Loaded** out, const void* image) {
    IN_CONTEXT;
    const Elf64_Ehdr* header = (const Elf64_Ehdr*)image;
    std::string compiled;
    size_t bytes = 0;
    if (!memcmp(image, ELFMAG, SELFMAG)) {
        if (header->e_machine == 190) return NO_BINARY_FOR_GPU;  // a real cubin
        bytes = header->e_shoff + (size_t)header->e_shentsize * header->e_shnum;
    } else {
        const std::string text = (const char*)image;
        const std::string arch = "sm_" + std::to_string(setting("FAKE_CUDA_CAPABILITY", 80));
        if (text.compare(0, 20, "// text for compute_") || atoi(text.c_str() + 20) > setting("FAKE_CUDA_CAPABILITY", 80)) return INVALID_PTX;
        std::string log;
        compiled = shim::compile(text, arch, log);
        if (compiled.empty()) return fprintf(stderr, "%s\n", log.c_str()), INVALID_PTX;
        ++counts["texts_compiled"];
        image = compiled.data(), bytes = compiled.size();
    }
    const int file = (int)syscall(SYS_memfd_create, "kernels", 0);
    for (size_t at = 0; at < bytes;) {
        const ssize_t wrote = write(file, (const char*)image + at, bytes - at);
        if (wrote <= 0) return INVALID_IMAGE;
        at += (size_t)wrote;
    }
    void* library = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
    close(file);
    const shim::Module* module = library ? (const shim::Module*)dlsym(library, "shim_module") : nullptr;
    if (!module) return fprintf(stderr, "%s\n", dlerror()), INVALID_IMAGE;
    if (!runs(module->arch)) return NO_BINARY_FOR_GPU;
    module->catch_faults();
    *out = new Loaded{library, {}};
    for (size_t i = 0; i < module->count; ++i) (*out)->functions[module->kernels[i].name] = {module, &module->kernels[i]};
    return SUCCESS;
}
API cuModuleUnload(Loaded* loaded) {
    GUARD;
    for (Stream* stream : streams) drain(stream);
    dlclose(loaded->library);
    delete loaded;
    return SUCCESS;
}
API cuModuleGetFunction(Function** out, Loaded* loaded, const char* name) {
    IN_CONTEXT;
    auto found = loaded->functions.find(name);
    if (found == loaded->functions.end()) return NOT_FOUND;
    return *out = &found->second, SUCCESS;
}
API cuLaunchKernel(
    Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, Stream* stream, void** params, void**
) {
    IN_CONTEXT;
    if (!streams.count(stream)) return INVALID_HANDLE;
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || !bx || bx > 1024 || by != 1 || bz != 1 || shared) return INVALID_VALUE;
    Launch launch{f, {gx, gy, gz}, bx, {}};
    for (unsigned i = 0; i < f->entry->pointers; ++i) launch.pointers.push_back(*(void**)params[i]);
    if (stream->records) {
        ++counts["kernels_recorded"];
        stream->recorded.push_back(launch);
        return SUCCESS;
    }
    ++counts["kernels_launched"];
    return put(stream, [launch] { run(launch); });
}

// --- graphs

API cuStreamBeginCapture_v2(Stream* stream, int) {
    IN_CONTEXT;
    if (!streams.count(stream) || stream->records) return INVALID_HANDLE;
    stream->records = true;
    stream->recorded.clear();
    return SUCCESS;
}
API cuStreamEndCapture(Stream* stream, Graph** out) {
    IN_CONTEXT;
    if (!streams.count(stream) || !stream->records) return CAPTURE_INVALIDATED;
    stream->records = false;
    graphs.insert(*out = new Graph{stream->recorded});
    return SUCCESS;
}
API cuGraphInstantiateWithFlags(Graph** out, Graph* graph, unsigned long long) {
    IN_CONTEXT;
    if (!graphs.count(graph)) return INVALID_HANDLE;
    graphs.insert(*out = new Graph(*graph));
    ++counts["graphs"];
    return SUCCESS;
}
API cuGraphLaunch(Graph* graph, Stream* stream) {
    IN_CONTEXT;
    if (!graphs.count(graph)) return INVALID_HANDLE;
    ++counts["graphs_launched"];
    auto launches = std::make_shared<std::vector<Launch>>(graph->launches);
    return put(stream, [launches] {
        for (const Launch& launch : *launches) run(launch);
    });
}
static int forget(Graph* graph) {
    GUARD;
    if (!graphs.erase(graph)) return INVALID_HANDLE;
    delete graph;
    return SUCCESS;
}
API cuGraphDestroy(Graph* graph) { return forget(graph); }
API cuGraphExecDestroy(Graph* graph) { return forget(graph); }

// --- words

API cuGetErrorName(int status, const char** name) {
    switch (status) {
        case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
        case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
        case NO_DEVICE: *name = "CUDA_ERROR_NO_DEVICE"; break;
        case INVALID_CONTEXT: *name = "CUDA_ERROR_INVALID_CONTEXT"; break;
        case NO_BINARY_FOR_GPU: *name = "CUDA_ERROR_NO_BINARY_FOR_GPU"; break;
        case ILLEGAL_ADDRESS: *name = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
        default: *name = "CUDA_ERROR_UNKNOWN";
    }
    return SUCCESS;
}
API cuGetErrorString(int status, const char** text) {
    *text = status == ILLEGAL_ADDRESS ? "an illegal memory access was encountered" : "the fake driver refuses";
    return SUCCESS;
}
