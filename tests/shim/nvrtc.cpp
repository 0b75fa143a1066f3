// An NVRTC for tests: "machine code" is a shared library of the host that the shim's driver loads (driver.cpp), and "PTX" is the text
// itself, which that driver compiles when it loads it. Interface and answers are those of nvrtc.h as far as the compiler asks.
#include "toolchain.h"
#include <cstring>

#define API extern "C" __attribute__((visibility("default"))) int

struct Program {
    std::string text, log, binary, ptx;
};

enum { SUCCESS = 0, INVALID_INPUT = 3, INVALID_OPTION = 5, COMPILATION = 6 };

static int give(const std::string& what, char* to) {
    memcpy(to, what.data(), what.size());
    return SUCCESS;
}

API nvrtcCreateProgram(Program** out, const char* text, const char*, int, const char* const*, const char* const*) {
    *out = new Program{text, "", "", ""};
    return SUCCESS;
}
API nvrtcDestroyProgram(Program** program) {
    delete *program;
    *program = nullptr;
    return SUCCESS;
}
API nvrtcCompileProgram(Program* p, int count, const char* const* options) {
    std::string arch;
    for (int i = 0; i < count; ++i) {
        if (!strncmp(options[i], "--gpu-architecture=", 19)) arch = options[i] + 19;
    }
    if (!arch.compare(0, 8, "compute_")) {
        p->ptx = "// text for " + arch + "\n" + p->text + '\0';
        return SUCCESS;
    }
    if (arch.compare(0, 3, "sm_") || arch.size() < 5) return p->log = "no architecture " + arch, INVALID_OPTION;
    p->binary = shim::compile(p->text, arch, p->log);
    if (p->binary.empty()) return COMPILATION;
    // What the assembler says about each kernel, in its words.
    for (const std::string& name : shim::kernel_names(p->text)) {
        p->log += "ptxas info    : Compiling entry function '" + name + "' for '" + arch + "'\n";
        p->log += "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\nptxas info    : Used 32 registers\n";
    }
    return SUCCESS;
}
API nvrtcGetProgramLogSize(Program* p, size_t* size) { return *size = p->log.size(), SUCCESS; }
API nvrtcGetProgramLog(Program* p, char* to) { return give(p->log, to); }
API nvrtcGetCUBINSize(Program* p, size_t* size) { return *size = p->binary.size(), SUCCESS; }
API nvrtcGetCUBIN(Program* p, char* to) { return give(p->binary, to); }
API nvrtcGetPTXSize(Program* p, size_t* size) { return *size = p->ptx.size(), SUCCESS; }
API nvrtcGetPTX(Program* p, char* to) { return give(p->ptx, to); }
extern "C" __attribute__((visibility("default"))) const char* nvrtcGetErrorString(int status) {
    return status == INVALID_OPTION ? "NVRTC_ERROR_INVALID_OPTION" : status == COMPILATION ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR";
}
