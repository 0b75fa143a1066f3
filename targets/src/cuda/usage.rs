//! What kernels take of a multiprocessor, as the assembler's log says.

/// What one kernel takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Its name.
    pub kernel: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of a thread's stack: arrays that did not fit into registers.
    pub stack: u32,
    /// Bytes that spilled registers store and load.
    pub spilled: u32,
}

/// Reads the log of `--ptxas-options=-v`, whose parts for a kernel are
///
/// ```text
/// ptxas info    : Compiling entry function 'NAME' for 'sm_80'
/// ptxas info    : Function properties for NAME
///     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 40 registers, used 1 barriers, 16 bytes smem, 400 bytes cmem[0]
/// ```
pub(super) fn parse(log: &str) -> Vec<Usage> {
    let mut found: Vec<Usage> = Vec::new();
    // The number before `what`.
    let number = |line: &str, what: &str| -> Option<u32> {
        let before = line.split(what).next().filter(|before| before.len() < line.len())?;
        before.trim_end().rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or_default().to_string();
            found.push(Usage { kernel, registers: 0, stack: 0, spilled: 0 });
        }
        let Some(last) = found.last_mut() else { continue };
        if let Some(bytes) = number(line, " bytes stack frame") {
            last.stack = bytes;
            let parts =
                [" bytes spill stores", " bytes spill loads"].map(|part| number(line, part).unwrap_or(0));
            last.spilled = parts.iter().sum();
        }
        if let Some(registers) = number(line, " registers") {
            last.registers = registers;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_read() {
        let log = "kernels.cu(1): warning #177-D: 3 registers\n\
            ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'rope_1' for 'sm_80'\n\
            ptxas info    : Function properties for rope_1\n    \
            16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n\
            ptxas info    : Used 40 registers, used 1 barriers, 16 bytes smem, 400 bytes cmem[0]\n\
            ptxas info    : Compiling entry function 'embed_0' for 'sm_80'\n\
            ptxas info    : Function properties for embed_0\n    \
            0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 255 registers\n";
        let usage = |kernel: &str, registers, stack, spilled| Usage {
            kernel: kernel.into(),
            registers,
            stack,
            spilled,
        };
        assert_eq!(parse(log), [usage("rope_1", 40, 16, 12), usage("embed_0", 255, 0, 0)]);
        assert_eq!(parse(""), []);
    }
}
