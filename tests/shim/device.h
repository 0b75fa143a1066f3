// The device as a process: it reads commands, one a line, and answers each. `kernels` is the table of what the text defines.
//
//   alloc ID BYTES                        memory ID, filled with bytes 0xff (as floats: no numbers); an older one of that ID goes
//   write ID OFFSET LEN                   LEN bytes follow
//   read ID OFFSET LEN                    LEN bytes come back
//   launch NAME X Y Z THREADS REVERSE COUNT (ID OFFSET)*
#include <map>
#include <string>

int main() {
    shim::catch_faults();
    std::map<unsigned, shim::Memory> memories;
    auto memory = [&](unsigned id, size_t offset, size_t len) -> char* {
        auto found = memories.find(id);
        if (found == memories.end()) shim::fail("no memory %u", id);
        if (offset > found->second.bytes || len > found->second.bytes - offset) shim::fail("memory %u has no bytes %zu + %zu", id, offset, len);
        return found->second.data + offset;
    };
    char command[16];
    while (scanf("%15s", command) == 1) {
        const std::string what = command;
        unsigned id;
        size_t offset = 0, len = 0;
        if (what == "alloc" && scanf("%u %zu", &id, &len) == 2) {
            memories[id].allocate(len);
        } else if (what == "write" && scanf("%u %zu %zu", &id, &offset, &len) == 3 && getchar() == '\n') {
            if (fread(memory(id, offset, len), 1, len, stdin) != len) shim::fail("a command that is cut off");
        } else if (what == "read" && scanf("%u %zu %zu", &id, &offset, &len) == 3) {
            fwrite(memory(id, offset, len), 1, len, stdout);
        } else if (what == "launch") {
            char name[128];
            shim::Index groups;
            unsigned threads, reverse, count;
            if (scanf("%127s %u %u %u %u %u %u", name, &groups.x, &groups.y, &groups.z, &threads, &reverse, &count) != 7) shim::fail("bad launch");
            std::vector<void*> args;
            for (unsigned i = 0; i < count; ++i) {
                if (scanf("%u %zu", &id, &offset) != 2) shim::fail("bad launch of %s", name);
                args.push_back(memory(id, offset, 0));
            }
            const shim::Entry* found = nullptr;
            for (const shim::Entry& k : kernels) found = strcmp(k.name, name) ? found : &k;
            if (!found) shim::fail("no kernel %s", name);
            if (found->pointers != count) shim::fail("%s takes %u pointers, not %u", name, found->pointers, count);
            shim::run(found->name, found->call, args.data(), groups, threads, reverse);
        } else {
            shim::fail("no command %s", command);
        }
        fputc('.', stdout);
        fflush(stdout);
    }
    return 0;
}
