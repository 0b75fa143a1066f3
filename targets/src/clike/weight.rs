//! How a tile of a packed weight is decoded: the layout of [`bessemer_format::panel`] and the meaning of
//! [`QuantScheme::dequant`](bessemer_format::QuantScheme::dequant) as text.
//!
//! A line of 64 bytes holds, for every column, four bytes side by side: a thread's 16 bytes are one word for each of its four columns, and
//! one shift and mask makes four codes of it.

use super::{Block, float};
use bessemer_format::panel::{K_STEP, LINE, planes};
use bessemer_format::{Elem, Offset, PanelLayout, ScaleType};

/// The struct `name` for weights of `layout`.
pub(super) fn layout(name: &str, layout: &PanelLayout) -> String {
    let mut b = Block::default();
    let tiles = layout.padded_k().div_ceil(K_STEP);
    b.line(format!("// {} x {} in {}", layout.n(), layout.k(), layout.scheme()));
    b.open(format!("struct {name}"));
    b.line(format!("enum {{ N = {}, K = {}, TILES = {tiles} }};", layout.n(), layout.k()));
    b.line(format!("enum {{ PANELS = {}, PANEL_BYTES = {} }};", layout.panels(), layout.panel_bytes()));
    b.open("MEMBER void decode(const GLOBAL uchar* panel, int tile, int quarter, LOCAL float (&w)[16][4])");
    b.line("uint line[4];");
    match layout.scheme().elem {
        Elem::F32 => floats(&mut b, 16, "w[l][c] = as_float(line[c]);"),
        Elem::F16 => halves(&mut b, "f16"),
        Elem::Bf16 => halves(&mut b, "bf16"),
        _ => codes(&mut b, layout),
    }
    b.close();
    b.depth -= 1;
    b.line("};");
    b.text
}

/// Floats: a tile is `lines` whole lines.
fn floats(b: &mut Block, lines: usize, each: &str) {
    b.open(format!("UNROLL for (int l = 0; l < {lines}; ++l)"));
    b.line(format!("load16(panel + (tile * {lines} + l) * {LINE} + quarter * 16, line);"));
    b.line(format!("UNROLL for (int c = 0; c < 4; ++c) {each}"));
    b.close();
}

fn halves(b: &mut Block, number: &str) {
    let each = format!(
        "w[2 * l][c] = {number}((ushort)(line[c] & 0xffffu)), w[2 * l + 1][c] = {number}((ushort)(line[c] >> 16));"
    );
    floats(b, 8, &each);
}

fn codes(b: &mut Block, layout: &PanelLayout) {
    let (elem, runs) = (layout.scheme().elem, layout.runs());
    let last = runs - 1;
    let tiles_a_run = layout.run_len(0).div_ceil(K_STEP);
    // A number that is another one in the last run.
    let of_run = |full: usize, short: usize| match full == short {
        true => full.to_string(),
        false => format!("(run == {last} ? {short} : {full})"),
    };
    b.line(format!("const int run = tile / {tiles_a_run}, part = tile % {tiles_a_run};"));
    b.line(format!("const GLOBAL uchar* codes = panel + run * {};", layout.run_offset(1)));
    b.line("uint atoms[4][4];  // [four elements of k][column]: a byte an element");
    let lines = |run: usize, bits: u32| {
        let padded = layout.run_len(run).next_multiple_of(K_STEP);
        (padded / 4).div_ceil(8 / bits as usize)
    };
    let (mut full, mut short) = (0, 0);
    for (at, plane) in planes(elem.bits()).enumerate() {
        let base = of_run(full * LINE, short * LINE);
        let mask = 0x0101_0101u32 * ((1u32 << plane.bits) - 1);
        let assign = if at == 0 { "=" } else { "|=" };
        let put = |atom: &str, shift: &str| {
            let code = format!("(line[c] >> {shift} & 0x{mask:08x}u)");
            let code = if plane.shift == 0 { code } else { format!("{code} << {}", plane.shift) };
            format!(
                "UNROLL for (int a = 0; a < {}; ++a) UNROLL for (int c = 0; c < 4; ++c) atoms[{atom}][c] {assign} {code};",
                4.min(8 / plane.bits)
            )
        };
        if plane.bits == 1 {
            // Half a line.
            b.line(format!("load16(codes + {base} + part / 2 * {LINE} + quarter * 16, line);"));
            b.line(put("a", "(part % 2 * 4 + a)"));
        } else {
            let lines = plane.bits / 2;
            b.open(format!("UNROLL for (int l = 0; l < {lines}; ++l)"));
            b.line(format!("load16(codes + {base} + (part * {lines} + l) * {LINE} + quarter * 16, line);"));
            b.line(put(&format!("l * {} + a", 8 / plane.bits), &format!("(a * {})", plane.bits)));
            b.close();
        }
        full += lines(0, plane.bits);
        short += lines(last, plane.bits);
    }
    let side = of_run(layout.run_code_bytes(0), layout.run_code_bytes(last));
    b.line(format!("const GLOBAL uchar* side = codes + {side};"));
    b.open("UNROLL for (int c = 0; c < 4; ++c)");
    b.line("const int column = quarter * 4 + c;");
    scales(b, layout);
    b.open("UNROLL for (int j = 0; j < 16; ++j)");
    b.line("const uint code = atoms[j / 4][c] >> j % 4 * 8 & 0xffu;");
    let number = match elem {
        Elem::S(bits) => format!("(float)((int)(code << {0}) >> {0})", 32 - u32::from(bits)),
        Elem::E4M3 => "e4m3(code)".into(),
        Elem::E5M2 => "e5m2(code)".into(),
        Elem::E2M1 => "e2m1(code)".into(),
        Elem::Iq4 => "iq4(code)".into(),
        _ => "(float)code".into(),
    };
    let value = match layout.scheme().offset {
        Offset::None => format!("{number} * scale"),
        Offset::Const(c) => format!("({number} - {}) * scale", float(c as f32)),
        Offset::Float(_) | Offset::Zero(_) => format!("{number} * scale + offset"),
    };
    b.line(format!("w[j][c] = {value};"));
    b.close();
    b.close();
}

/// `scale` and `offset` of a column, by [`bessemer_format::QuantScheme::combine`].
fn scales(b: &mut Block, layout: &PanelLayout) {
    let scheme = layout.scheme();
    let Some(levels) = scheme.scale else { return };
    let read = |ty: ScaleType, at: &str| {
        let ty = match ty {
            ScaleType::F32 => "f32",
            ScaleType::F16 => "f16",
            ScaleType::Bf16 => "bf16",
            ScaleType::U8 => "u8",
            ScaleType::S8 => "s8",
            ScaleType::E4M3 => "e4m3",
            ScaleType::E8M0 => "e8m0",
        };
        format!("scale_{ty}({at}, column)")
    };
    let mut scale = read(levels.inner.ty, "side");
    let mut offset = scheme.offset_type().map(|ty| read(ty, &format!("side + {}", layout.scale_bytes())));
    if let Some(first) = layout.outer(0) {
        // Runs of an outer group, and bytes from one group to the next.
        let runs = (0..layout.runs()).take_while(|r| layout.outer_group(*r).0 == 0).count();
        let step = layout.outer(runs.min(layout.runs() - 1)).map_or(0, |o| o.scale.1 - first.scale.1);
        let place = |at: usize| format!("panel + {at} + run / {runs} * {step}");
        scale = format!("{scale} * {}", read(first.scale.0, &place(first.scale.1)));
        if let (Some(inner), Some((ty, at))) = (&offset, first.offset) {
            offset = Some(format!("{inner} * {}", read(ty, &place(at))));
        }
    }
    b.line(format!("const float scale = {scale};"));
    if let Some(offset) = offset {
        let offset = match scheme.offset {
            Offset::Zero(_) => format!("-({offset} * scale)"),
            _ => offset,
        };
        b.line(format!("const float offset = {offset};"));
    }
}
