//! AMX on hosts without it: every kernel of tiles is tested as the machine code that it is, wherever the tests run.
//!
//! A CPU without AMX raises an illegal-instruction fault at each of its instructions, which Linux turns into the signal SIGILL. The handler
//! below decodes the instruction, executes it on tiles of its own, as Intel's manual has it ("Intel 64 and IA-32 Architectures Software
//! Developer's Manual", volume 2, instructions LDTILECFG to TILEZERO), and continues behind it. What the manual makes a fault ends
//! the process with a line that says which: a configuration that is not valid, shapes that do not fit, a tile that has none.
//!
//! Where the CPU has AMX the same tests run on it, and nothing here is used.

use crate::Isa;

/// Whether AMX is emulated in this process: not where the host has it, nor where it lacks the vectors that its kernels use too.
pub(crate) fn stands_in() -> bool {
    if Isa::Amx.available() || !Isa::Avx512Bf16.available() {
        return false;
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        linux::install();
        true
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod linux {
    use std::cell::UnsafeCell;
    use std::ffi::c_void;
    use std::sync::Once;

    const ROWS: usize = 16;
    const ROW_BYTES: usize = 64;
    type Tile = [[u8; ROW_BYTES]; ROWS];

    /// The tiles of a thread.
    struct Tiles {
        /// Rows of each and bytes of a row; none before they are configured.
        shapes: [Option<(usize, usize)>; 8],
        tiles: [Tile; 8],
    }

    thread_local! {
        // Constant and without a destructor, so that the handler allocates and registers nothing when it first asks for it.
        static TILES: UnsafeCell<Tiles> =
            const { UnsafeCell::new(Tiles { shapes: [None; 8], tiles: [[[0; ROW_BYTES]; ROWS]; 8] }) };
    }

    pub(super) fn install() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // SAFETY: all zeros are an action without flags and mask.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            // SAFETY: the handler has the type that SA_SIGINFO asks for, and calls nothing that a handler may not.
            let rc = unsafe { libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()) };
            assert_eq!(rc, 0, "sigaction failed");
        });
    }

    extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
        // SAFETY: the kernel hands the handler the context of the thread, which no one else looks at meanwhile.
        let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
        let rip = registers[libc::REG_RIP as usize] as *const u8;
        match Instruction::decode(rip, registers) {
            Some(instruction) => {
                // SAFETY: the cell is this thread's, and the instruction that was interrupted is none of this function.
                TILES.with(|tiles| unsafe { instruction.execute(&mut *tiles.get()) });
                registers[libc::REG_RIP as usize] += instruction.len as i64;
            }
            None => {
                // Another illegal instruction: it comes again, and ends the process as it would have.
                // SAFETY: the default action is always possible.
                unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
            }
        }
    }

    fn fail(why: &str) -> ! {
        // SAFETY: both may be called in a handler.
        unsafe {
            libc::write(2, why.as_ptr().cast(), why.len());
            libc::write(2, "\n".as_ptr().cast(), 1);
            libc::abort()
        }
    }

    /// What is multiplied.
    #[derive(Clone, Copy)]
    enum Of {
        /// `tdpbf16ps`.
        Bf16,
        /// `tdpbsud`: signed bytes with unsigned ones.
        Bytes,
    }

    #[derive(Clone, Copy)]
    enum Operation {
        Configure { from: *const u8 },
        Release,
        Zero { tile: usize },
        Load { tile: usize, from: *const u8, stride: usize },
        Store { tile: usize, to: *mut u8, stride: usize },
        Multiply { of: Of, sum: usize, a: usize, b: usize },
    }

    struct Instruction {
        operation: Operation,
        len: usize,
    }

    /// The number of a general-purpose register as machine code has it, as an index of `gregs`.
    const REGISTERS: [libc::c_int; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];

    impl Instruction {
        /// VEX prefix of three bytes (map 0F 38, W0, 128 bits), opcode, ModRM and what that asks for. `None` for any other instruction.
        fn decode(at: *const u8, registers: &[libc::greg_t; 23]) -> Option<Self> {
            // SAFETY: an instruction ends at a page's end at the earliest, and bytes are only read as far as it goes.
            let byte = |i: usize| unsafe { *at.add(i) };
            if byte(0) != 0xc4 || byte(1) & 0x1f != 2 || byte(2) & 0x84 != 0 {
                return None;
            }
            // Inverted: whether ModRM's register, its index and its base are among the upper eight.
            let extended = |bit: u8| usize::from(byte(1) >> bit & 1 ^ 1) << 3;
            let (prefix, third) = (byte(2) & 3, usize::from(byte(2) >> 3 & 15 ^ 15));
            let (opcode, modrm) = (byte(3), byte(4));
            let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
            let value = |register: usize| registers[REGISTERS[register] as usize] as usize;
            // The base, and what is added to it (for tiles: the stride), where memory is meant; and where the instruction ends.
            let memory = || {
                let (mut base, mut index, mut end) = (0, 0, 5);
                let mut has_base = true;
                if rm == 4 {
                    let sib = byte(5);
                    end = 6;
                    let number = usize::from(sib >> 3 & 7) | extended(6);
                    if number != 4 {
                        index = value(number) << (sib >> 6);
                    }
                    match usize::from(sib & 7) {
                        5 if mode == 0 => has_base = false,
                        number => base = value(number | extended(5)),
                    }
                } else if rm == 5 && mode == 0 {
                    // Relative to the next instruction.
                    base = at as usize + 9;
                    has_base = false;
                } else {
                    base = value(rm | extended(5));
                }
                let displacement = match mode {
                    1 => i64::from(byte(end) as i8),
                    0 if has_base => 0,
                    _ => i64::from(i32::from_le_bytes([0, 1, 2, 3].map(|i| byte(end + i)))),
                };
                end += match mode {
                    1 => 1,
                    0 if has_base => 0,
                    _ => 4,
                };
                (base.wrapping_add_signed(displacement as isize), index, end)
            };
            let registers_only = mode == 3;
            let (operation, len) = match (opcode, prefix, registers_only) {
                (0x49, 0, false) if reg == 0 => {
                    let (base, index, end) = memory();
                    (Operation::Configure { from: base.wrapping_add(index) as *const u8 }, end)
                }
                (0x49, 0, true) if (reg, rm) == (0, 0) => (Operation::Release, 5),
                (0x49, 3, true) if rm == 0 => (Operation::Zero { tile: reg }, 5),
                (0x4b, 3, false) if rm == 4 => {
                    let (base, stride, end) = memory();
                    (Operation::Load { tile: reg, from: base as *const u8, stride }, end)
                }
                (0x4b, 2, false) if rm == 4 => {
                    let (base, stride, end) = memory();
                    (Operation::Store { tile: reg, to: base as *mut u8, stride }, end)
                }
                (0x5c, 2, true) => (Operation::Multiply { of: Of::Bf16, sum: reg, a: rm, b: third }, 5),
                (0x5e, 2, true) => (Operation::Multiply { of: Of::Bytes, sum: reg, a: rm, b: third }, 5),
                _ => return None,
            };
            Some(Self { operation, len })
        }

        /// # Safety
        /// The memory that the instruction names may be read or written by it.
        unsafe fn execute(&self, state: &mut Tiles) {
            match self.operation {
                Operation::Configure { from } => {
                    // SAFETY: the operand has 64 bytes.
                    let config = unsafe { from.cast::<[u8; 64]>().read_unaligned() };
                    *state = Tiles { shapes: shapes(&config), tiles: [[[0; ROW_BYTES]; ROWS]; 8] };
                }
                Operation::Release => {
                    *state = Tiles { shapes: [None; 8], tiles: [[[0; ROW_BYTES]; ROWS]; 8] };
                }
                Operation::Zero { tile } => {
                    state.shape(tile);
                    state.tiles[tile] = [[0; ROW_BYTES]; ROWS];
                }
                Operation::Load { tile, from, stride } => {
                    let (rows, bytes) = state.shape(tile);
                    state.tiles[tile] = [[0; ROW_BYTES]; ROWS];
                    for (i, row) in state.tiles[tile].iter_mut().take(rows).enumerate() {
                        let from = from.wrapping_add(i.wrapping_mul(stride));
                        // SAFETY: the caller's promise.
                        unsafe { std::ptr::copy_nonoverlapping(from, row.as_mut_ptr(), bytes) };
                    }
                }
                Operation::Store { tile, to, stride } => {
                    let (rows, bytes) = state.shape(tile);
                    for (i, row) in state.tiles[tile].iter().take(rows).enumerate() {
                        let to = to.wrapping_add(i.wrapping_mul(stride));
                        // SAFETY: the caller's promise.
                        unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), to, bytes) };
                    }
                }
                Operation::Multiply { of, sum, a, b } => {
                    if sum == a || sum == b || a == b {
                        fail("AMX: two operands of a product are the same tile");
                    }
                    let ((rows, sum_bytes), (a_rows, a_bytes), (b_rows, b_bytes)) =
                        (state.shape(sum), state.shape(a), state.shape(b));
                    if rows != a_rows || sum_bytes != b_bytes || a_bytes != 4 * b_rows {
                        fail("AMX: the tiles of a product do not fit");
                    }
                    let (a, b) = (state.tiles[a], state.tiles[b]);
                    for (sum, a) in state.tiles[sum].iter_mut().zip(&a).take(rows) {
                        match of {
                            // SAFETY: where AMX is emulated the host has AVX-512, and so fused multiply-add.
                            Of::Bf16 => unsafe { add_pairs(sum, &a[..a_bytes], &b, sum_bytes / 4) },
                            Of::Bytes => add_fours(sum, &a[..a_bytes], &b, sum_bytes / 4),
                        }
                    }
                }
            }
        }
    }

    impl Tiles {
        fn shape(&self, tile: usize) -> (usize, usize) {
            match self.shapes[tile] {
                Some(shape) => shape,
                None => fail("AMX: a tile is used that is not configured"),
            }
        }
    }

    /// What `ldtilecfg` reads: palette, first row, 14 bytes that are zero, bytes a row (16 bits each), rows.
    fn shapes(config: &[u8; 64]) -> [Option<(usize, usize)>; 8] {
        if config[0] != 1 || config[1] != 0 || config[2..16].iter().any(|b| *b != 0) {
            fail(
                "AMX: a configuration of another palette, with a row to start at, or with reserved bytes that are not zero",
            );
        }
        std::array::from_fn(|i| {
            let bytes = usize::from(u16::from_le_bytes([config[16 + 2 * i], config[17 + 2 * i]]));
            let rows = usize::from(config[48 + i]);
            if bytes > ROW_BYTES || rows > ROWS || (bytes == 0) != (rows == 0) {
                fail("AMX: a tile of more rows or bytes than there are, or of only one of them");
            }
            (rows > 0).then_some((rows, bytes))
        })
    }

    /// One row of `tdpbf16ps`: even and odd elements along k are summed apart, by fused products, and their sum is added. Rounded to
    /// nearest and even; what is too small for a normal number is zero, in operands and results, whatever MXCSR says.
    #[target_feature(enable = "fma")]
    fn add_pairs(sum: &mut [u8; ROW_BYTES], a: &[u8], b: &Tile, columns: usize) {
        let mut halves = [[0.0f32; 2]; ROW_BYTES / 4];
        for (a, b) in a.as_chunks::<4>().0.iter().zip(b) {
            for (half, b) in halves.iter_mut().zip(b.as_chunks::<4>().0).take(columns) {
                for i in 0..2 {
                    let [a, b] = [a, b].map(|pair| bf16([pair[2 * i], pair[2 * i + 1]]));
                    half[i] = flushed(a.mul_add(b, half[i]));
                }
            }
        }
        for ([even, odd], sum) in halves.iter().zip(sum.as_chunks_mut::<4>().0).take(columns) {
            let before = flushed(f32::from_le_bytes(*sum));
            *sum = flushed(before + flushed(even + odd)).to_le_bytes();
        }
    }

    /// One row of `tdpbsud`: sums of 32 bits, which wrap.
    fn add_fours(sum: &mut [u8; ROW_BYTES], a: &[u8], b: &Tile, columns: usize) {
        for (column, sum) in sum.as_chunks_mut::<4>().0.iter_mut().take(columns).enumerate() {
            let mut total = i32::from_le_bytes(*sum);
            for (a, b) in a.as_chunks::<4>().0.iter().zip(b) {
                for (a, b) in a.iter().zip(&b[4 * column..]) {
                    total = total.wrapping_add(i32::from(*a as i8) * i32::from(*b));
                }
            }
            *sum = total.to_le_bytes();
        }
    }

    fn bf16(bytes: [u8; 2]) -> f32 {
        flushed(f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16))
    }

    /// Zero, with the sign, in place of a number that is too small to be normal.
    fn flushed(v: f32) -> f32 {
        if v.is_subnormal() { 0.0f32.copysign(v) } else { v }
    }
}
