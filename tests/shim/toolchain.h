// Compiles the text of CUDA kernels with the host's C++ compiler, for the shim's NVRTC and for the compiler inside its driver.
// SHIM_ROOT is the folder of this file.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <unistd.h>
#include <vector>

namespace shim {

// Names of the kernels that a text defines: `KERNEL(threads) name(` at the start of a line.
inline std::vector<std::string> kernel_names(const std::string& text) {
    std::vector<std::string> names;
    for (size_t at = 0; (at = text.find("\nKERNEL(", at)) != std::string::npos;) {
        at = text.find(") ", at) + 2;
        names.push_back(text.substr(at, text.find('(', at) - at));
    }
    return names;
}

// A shared library for `arch`, or nothing after what the compiler says went to `log`.
inline std::string compile(const std::string& text, const std::string& arch, std::string& log) {
    char folder[] = "/tmp/bessemer-shim-XXXXXX";
    if (!mkdtemp(folder)) return log = "no temporary folder", "";
    const std::string base = folder, source = base + "/kernels.cpp", out = base + "/kernels.so", said = base + "/log";
    std::ofstream file(source);
    file << "#include \"cuda.h\"\n" << text << "\nstatic const shim::Entry kernels[] = {\n";
    for (const std::string& name : kernel_names(text)) file << "    SHIM_KERNEL(" << name << "),\n";
    file << "};\n#include \"module.h\"\n";
    file.close();
    // Hidden: two modules in one process must not share the state of their fibers.
    const std::string command =
        "g++ -std=c++17 -O1 -shared -fPIC -fvisibility=hidden -ffp-contract=off -fno-strict-aliasing -Wno-attributes -Wno-unknown-pragmas "
        "-fsanitize=bounds -fsanitize-undefined-trap-on-error -I '" SHIM_ROOT "' -DSHIM_ARCH='\"" + arch + "\"' '" + source + "' -o '" + out +
        "' > '" + said + "' 2>&1";
    const bool good = system(command.c_str()) == 0;
    auto read = [](const std::string& path) {
        std::ifstream in(path, std::ios::binary);
        return std::string(std::istreambuf_iterator<char>(in), {});
    };
    log = read(said);
    const std::string library = good ? read(out) : "";
    for (const std::string& path : {source, out, said}) unlink(path.c_str());
    rmdir(folder);
    return library;
}

}  // namespace shim
