struct W0 {
    enum { N = 288, K = 64, TILES = 4 };
    enum { PANELS = 18, PANEL_BYTES = 1088 };
    MEMBER void decode(const GLOBAL uchar* panel, int tile, int quarter, LOCAL float (&w)[16][4]) {
        uint line[4];
        const int run = tile / 2, part = tile % 2;
        const GLOBAL uchar* codes = panel + run * 544;
        uint atoms[4][4];  // [four elements of k][column]: a byte an element
        UNROLL for (int l = 0; l < 4; ++l) {
            load16(codes + 0 + (part * 4 + l) * 64 + quarter * 16, line);
            UNROLL for (int a = 0; a < 1; ++a) UNROLL for (int c = 0; c < 4; ++c) atoms[l * 1 + a][c] = (line[c] >> (a * 8) & 0xffffffffu);
        }
        const GLOBAL uchar* side = codes + 512;
        UNROLL for (int c = 0; c < 4; ++c) {
            const int column = quarter * 4 + c;
            const float scale = scale_f16(side, column);
            UNROLL for (int j = 0; j < 16; ++j) {
                const uint code = atoms[j / 4][c] >> j % 4 * 8 & 0xffu;
                w[j][c] = (float)((int)(code << 24) >> 24) * scale;
            }
        }
    }
};

// 64 x 64 in u4:f16x32-8
struct W1 {
    enum { N = 64, K = 64, TILES = 4 };
    enum { PANELS = 4, PANEL_BYTES = 576 };
    MEMBER void decode(const GLOBAL uchar* panel, int tile, int quarter, LOCAL float (&w)[16][4]) {
        uint line[4];
        const int run = tile / 2, part = tile % 2;
        const GLOBAL uchar* codes = panel + run * 288;
        uint atoms[4][4];  // [four elements of k][column]: a byte an element
        UNROLL for (int l = 0; l < 2; ++l) {
            load16(codes + 0 + (part * 2 + l) * 64 + quarter * 16, line);
            UNROLL for (int a = 0; a < 2; ++a) UNROLL for (int c = 0; c < 4; ++c) atoms[l * 2 + a][c] = (line[c] >> (a * 4) & 0x0f0f0f0fu);
        }
        const GLOBAL uchar* side = codes + 256;
        UNROLL for (int c = 0; c < 4; ++c) {
            const int column = quarter * 4 + c;
            const float scale = scale_f16(side, column);
            UNROLL for (int j = 0; j < 16; ++j) {
                const uint code = atoms[j / 4][c] >> j % 4 * 8 & 0xffu;
                w[j][c] = ((float)code - 8.0f) * scale;
            }
        }
    }
};

// 32 x 64 in u4:f16x32+f16
struct W2 {
    enum { N = 32, K = 64, TILES = 4 };
    enum { PANELS = 2, PANEL_BYTES = 640 };
    MEMBER void decode(const GLOBAL uchar* panel, int tile, int quarter, LOCAL float (&w)[16][4]) {
        uint line[4];
        const int run = tile / 2, part = tile % 2;
        const GLOBAL uchar* codes = panel + run * 320;
        uint atoms[4][4];  // [four elements of k][column]: a byte an element
        UNROLL for (int l = 0; l < 2; ++l) {
            load16(codes + 0 + (part * 2 + l) * 64 + quarter * 16, line);
            UNROLL for (int a = 0; a < 2; ++a) UNROLL for (int c = 0; c < 4; ++c) atoms[l * 2 + a][c] = (line[c] >> (a * 4) & 0x0f0f0f0fu);
        }
        const GLOBAL uchar* side = codes + 256;
        UNROLL for (int c = 0; c < 4; ++c) {
            const int column = quarter * 4 + c;
            const float scale = scale_f16(side, column);
            const float offset = scale_f16(side + 32, column);
            UNROLL for (int j = 0; j < 16; ++j) {
                const uint code = atoms[j / 4][c] >> j % 4 * 8 & 0xffu;
                w[j][c] = (float)code * scale + offset;
            }
        }
    }
};

// 32 x 64 in s8:f16x32
struct W3 {
    enum { N = 32, K = 64, TILES = 4 };
    enum { PANELS = 2, PANEL_BYTES = 1088 };
    MEMBER void decode(const GLOBAL uchar* panel, int tile, int quarter, LOCAL float (&w)[16][4]) {
        uint line[4];
        const int run = tile / 2, part = tile % 2;
        const GLOBAL uchar* codes = panel + run * 544;
        uint atoms[4][4];  // [four elements of k][column]: a byte an element
        UNROLL for (int l = 0; l < 4; ++l) {
            load16(codes + 0 + (part * 4 + l) * 64 + quarter * 16, line);
            UNROLL for (int a = 0; a < 1; ++a) UNROLL for (int c = 0; c < 4; ++c) atoms[l * 1 + a][c] = (line[c] >> (a * 8) & 0xffffffffu);
        }
        const GLOBAL uchar* side = codes + 512;
        UNROLL for (int c = 0; c < 4; ++c) {
            const int column = quarter * 4 + c;
            const float scale = scale_f16(side, column);
            UNROLL for (int j = 0; j < 16; ++j) {
                const uint code = atoms[j / 4][c] >> j % 4 * 8 & 0xffu;
                w[j][c] = (float)((int)(code << 24) >> 24) * scale;
            }
        }
    }
};

// 64 x 64 in u4:f16x32+f16
struct W4 {
    enum { N = 64, K = 64, TILES = 4 };
    enum { PANELS = 4, PANEL_BYTES = 640 };
    MEMBER void decode(const GLOBAL uchar* panel, int tile, int quarter, LOCAL float (&w)[16][4]) {
        uint line[4];
        const int run = tile / 2, part = tile % 2;
        const GLOBAL uchar* codes = panel + run * 320;
        uint atoms[4][4];  // [four elements of k][column]: a byte an element
        UNROLL for (int l = 0; l < 2; ++l) {
            load16(codes + 0 + (part * 2 + l) * 64 + quarter * 16, line);
            UNROLL for (int a = 0; a < 2; ++a) UNROLL for (int c = 0; c < 4; ++c) atoms[l * 2 + a][c] = (line[c] >> (a * 4) & 0x0f0f0f0fu);
        }
        const GLOBAL uchar* side = codes + 256;
        UNROLL for (int c = 0; c < 4; ++c) {
            const int column = quarter * 4 + c;
            const float scale = scale_f16(side, column);
            const float offset = scale_f16(side + 32, column);
            UNROLL for (int j = 0; j < 16; ++j) {
                const uint code = atoms[j / 4][c] >> j % 4 * 8 & 0xffu;
                w[j][c] = (float)code * scale + offset;
            }
        }
    }
};

// 32 x 64 in f16
struct W5 {
    enum { N = 32, K = 64, TILES = 4 };
    enum { PANELS = 2, PANEL_BYTES = 2048 };
    MEMBER void decode(const GLOBAL uchar* panel, int tile, int quarter, LOCAL float (&w)[16][4]) {
        uint line[4];
        UNROLL for (int l = 0; l < 8; ++l) {
            load16(panel + (tile * 8 + l) * 64 + quarter * 16, line);
            UNROLL for (int c = 0; c < 4; ++c) w[2 * l][c] = f16((ushort)(line[c] & 0xffffu)), w[2 * l + 1][c] = f16((ushort)(line[c] >> 16));
        }
    }
};

// 64 x 64 in bf16
struct W6 {
    enum { N = 64, K = 64, TILES = 4 };
    enum { PANELS = 4, PANEL_BYTES = 2048 };
    MEMBER void decode(const GLOBAL uchar* panel, int tile, int quarter, LOCAL float (&w)[16][4]) {
        uint line[4];
        UNROLL for (int l = 0; l < 8; ++l) {
            load16(panel + (tile * 8 + l) * 64 + quarter * 16, line);
            UNROLL for (int c = 0; c < 4; ++c) w[2 * l][c] = bf16((ushort)(line[c] & 0xffffu)), w[2 * l + 1][c] = bf16((ushort)(line[c] >> 16));
        }
    }
};

// 64 x 64 in s8:f16x32
struct W7 {
    enum { N = 64, K = 64, TILES = 4 };
    enum { PANELS = 4, PANEL_BYTES = 1088 };
    MEMBER void decode(const GLOBAL uchar* panel, int tile, int quarter, LOCAL float (&w)[16][4]) {
        uint line[4];
        const int run = tile / 2, part = tile % 2;
        const GLOBAL uchar* codes = panel + run * 544;
        uint atoms[4][4];  // [four elements of k][column]: a byte an element
        UNROLL for (int l = 0; l < 4; ++l) {
            load16(codes + 0 + (part * 4 + l) * 64 + quarter * 16, line);
            UNROLL for (int a = 0; a < 1; ++a) UNROLL for (int c = 0; c < 4; ++c) atoms[l * 1 + a][c] = (line[c] >> (a * 8) & 0xffffffffu);
        }
        const GLOBAL uchar* side = codes + 512;
        UNROLL for (int c = 0; c < 4; ++c) {
            const int column = quarter * 4 + c;
            const float scale = scale_f16(side, column);
            UNROLL for (int j = 0; j < 16; ++j) {
                const uint code = atoms[j / 4][c] >> j % 4 * 8 & 0xffu;
                w[j][c] = (float)((int)(code << 24) >> 24) * scale;
            }
        }
    }
};

// embed
KERNEL(128) embed_0(
    const GLOBAL int* tokens [[buffer(0)]],
    const GLOBAL uchar* table [[buffer(1)]],
    GLOBAL float* out [[buffer(2)]],
    GLOBAL int* fault [[buffer(3)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]
) {
    PLACE
    const int id = checked(tokens[gx], 288, fault);
    const GLOBAL uchar* panel = table + (idx)(id / 16) * W0::PANEL_BYTES;
    for (int tile = tid; tile < W0::TILES; tile += 128) {
        float w[16][4];
        W0::decode(panel, tile, id % 16 / 4, w);
        UNROLL for (int j = 0; j < 16; ++j) {
            const int k = tile * 16 + j;
            if (k < W0::K) out[(idx)gx * W0::K + k] = pick(w[j], id % 4);
        }
    }
}

// blk.0.attn_norm.weight
KERNEL(32) rms_norm_1(
    const GLOBAL float* x_v0 [[buffer(0)]],
    const GLOBAL float* w_v1 [[buffer(1)]],
    GLOBAL float* out_v2 [[buffer(2)]],
    const GLOBAL int* pass [[buffer(3)]],
    GLOBAL int* fault [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]
) {
    PLACE
    SHARED_ARRAY(float, partial, 1);
    const int i0 = gx;
    float r0 = 0.0f;
    for (int i1 = tid; i1 < 64; i1 += 32) {
        const float r1 = x_v0[(idx)i0 * 64 + i1];
        const float r2 = r1 * r1;
        r0 = r0 + r2;
    }
    r0 = group_sum(r0, partial, tid, 1);
    const float r3 = 64.0f;
    const float r4 = r0 / r3;
    const float r5 = 1e-5f;
    const float r6 = r4 + r5;
    const float r7 = root(r6);
    const float r8 = 1.0f;
    const float r9 = r8 / r7;
    for (int i1 = tid; i1 < 64; i1 += 32) {
        const float r10 = x_v0[(idx)i0 * 64 + i1];
        const float r11 = r10 * r9;
        const float r12 = w_v1[i1];
        const float r13 = r11 * r12;
        out_v2[(idx)i0 * 64 + i1] = r13;
    }
}

// blk.0.attn_{q,k,v}.weight
KERNEL(128) linear_2(
    const GLOBAL float* x [[buffer(0)]],
    const GLOBAL uchar* w0 [[buffer(1)]],
    const GLOBAL uchar* w1 [[buffer(2)]],
    const GLOBAL uchar* w2 [[buffer(3)]],
    GLOBAL float* out [[buffer(4)]],
    const GLOBAL int* pass [[buffer(5)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]
) {
    PLACE
    const int first = gx * 1, rows = lesser(pass[0] - first, 1);
    SHARED_ARRAY(float, parts, 64);
    int tile = gy;
    if (tile < 4) {
        panel_products<W1, 1, 4>(w0 + (idx)tile * W1::PANEL_BYTES, x + (idx)first * 64, 64, rows, tid, parts + 0);
        for (int i = tid; i < 1 * 16; i += 128) {
            const int r = i / 16, n = tile * 16 + i % 16;
            if (r >= rows || n >= 64) continue;
            const float y0 = product<1, 4>(parts + 0, i);
            out[(idx)(first + r) * 128 + 0 + n] = y0;
        }
        return;
    }
    tile -= 4;
    if (tile < 2) {
        panel_products<W2, 1, 4>(w1 + (idx)tile * W2::PANEL_BYTES, x + (idx)first * 64, 64, rows, tid, parts + 0);
        for (int i = tid; i < 1 * 16; i += 128) {
            const int r = i / 16, n = tile * 16 + i % 16;
            if (r >= rows || n >= 32) continue;
            const float y0 = product<1, 4>(parts + 0, i);
            out[(idx)(first + r) * 128 + 64 + n] = y0;
        }
        return;
    }
    tile -= 2;
    if (tile < 2) {
        panel_products<W3, 1, 4>(w2 + (idx)tile * W3::PANEL_BYTES, x + (idx)first * 64, 64, rows, tid, parts + 0);
        for (int i = tid; i < 1 * 16; i += 128) {
            const int r = i / 16, n = tile * 16 + i % 16;
            if (r >= rows || n >= 32) continue;
            const float y0 = product<1, 4>(parts + 0, i);
            out[(idx)(first + r) * 128 + 96 + n] = y0;
        }
        return;
    }
    tile -= 2;
}

// rope
KERNEL(32) rope_table_3(
    const GLOBAL int* positions_v0 [[buffer(0)]],
    const GLOBAL float* inv_freq_v1 [[buffer(1)]],
    GLOBAL float* out_v2 [[buffer(2)]],
    const GLOBAL int* pass [[buffer(3)]],
    GLOBAL int* fault [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]
) {
    PLACE
    const int i0 = gx;
    const int n0 = checked(positions_v0[i0], 256, fault);
    const float r0 = (float)n0;
    const float r1 = 1.0f;
    for (int i1 = tid; i1 < 8; i1 += 32) {
        const float r2 = inv_freq_v1[i1];
        const float r3 = r0 * r2;
        const float r4 = cosine(r3);
        const float r5 = r4 * r1;
        out_v2[(idx)i0 * 16 + i1] = r5;
        const float r6 = sine(r3);
        const float r7 = r6 * r1;
        out_v2[(idx)i0 * 16 + i1 + 8] = r7;
    }
}

// layer.0.append
KERNEL(128) rope_append_4(
    const GLOBAL float* qkv_v0 [[buffer(0)]],
    const GLOBAL float* table_v1 [[buffer(1)]],
    const GLOBAL int* slots_v2 [[buffer(2)]],
    GLOBAL float* q_v3 [[buffer(3)]],
    GLOBAL kv* cache_v4 [[buffer(4)]],
    const GLOBAL int* pass [[buffer(5)]],
    GLOBAL int* fault [[buffer(6)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]
) {
    PLACE
    const int warp = tid / LANES;
    const int lane = tid % LANES;
    const int i0 = gx;
    const int n0 = checked(slots_v2[i0], 2147483647, fault);
    for (int i1 = warp; i1 < 4; i1 += 4) {
        for (int i2 = lane; i2 < 8; i2 += LANES) {
            const float r0 = table_v1[(idx)i0 * 16 + i2];
            const float r1 = table_v1[(idx)i0 * 16 + i2 + 8];
            const float r2 = qkv_v0[(idx)i0 * 128 + (idx)i1 * 16 + (idx)i2 * 2];
            const float r3 = qkv_v0[(idx)i0 * 128 + (idx)i1 * 16 + (idx)i2 * 2 + 1];
            const float r4 = r2 * r0;
            const float r5 = r3 * r1;
            const float r6 = r3 * r0;
            const float r7 = r2 * r1;
            const float r8 = r4 - r5;
            const float r9 = r6 + r7;
            q_v3[(idx)i0 * 64 + (idx)i1 * 16 + (idx)i2 * 2] = r8;
            q_v3[(idx)i0 * 64 + (idx)i1 * 16 + (idx)i2 * 2 + 1] = r9;
        }
    }
    for (int i1 = warp; i1 < 2; i1 += 4) {
        for (int i2 = lane; i2 < 8; i2 += LANES) {
            const float r10 = table_v1[(idx)i0 * 16 + i2];
            const float r11 = table_v1[(idx)i0 * 16 + i2 + 8];
            const float r12 = qkv_v0[(idx)i0 * 128 + (idx)i1 * 16 + (idx)i2 * 2 + 64];
            const float r13 = qkv_v0[(idx)i0 * 128 + (idx)i1 * 16 + (idx)i2 * 2 + 65];
            const float r14 = r12 * r10;
            const float r15 = r13 * r11;
            const float r16 = r13 * r10;
            const float r17 = r12 * r11;
            const float r18 = r14 - r15;
            const float r19 = r16 + r17;
            cache_v4[(idx)(n0 / 32) * 2048 + (idx)i1 * 512 + (idx)(n0 / 16 % 2) * 256 + (idx)i2 * 32 + (idx)(n0 % 16) * 2] = store_kv(r18);
            cache_v4[(idx)(n0 / 32) * 2048 + (idx)i1 * 512 + (idx)(n0 / 16 % 2) * 256 + (idx)i2 * 32 + (idx)(n0 % 16) * 2 + 1] = store_kv(r19);
        }
    }
    for (int i1 = warp; i1 < 2; i1 += 4) {
        for (int i2 = lane; i2 < 16; i2 += LANES) {
            const float r20 = qkv_v0[(idx)i0 * 128 + (idx)i1 * 16 + i2 + 96];
            cache_v4[(idx)(n0 / 32) * 2048 + (idx)i1 * 512 + (idx)(n0 / 2 % 16) * 32 + (idx)i2 * 2 + n0 % 2 + 1024] = store_kv(r20);
        }
    }
}

// layer.0.attention
KERNEL(128) attention_5(
    const GLOBAL float* q [[buffer(0)]],
    const GLOBAL int* positions [[buffer(1)]],
    const GLOBAL int* starts [[buffer(2)]],
    const GLOBAL int* table [[buffer(3)]],
    const GLOBAL kv* cache [[buffer(4)]],
    GLOBAL float* out [[buffer(5)]],
    const GLOBAL int* pass [[buffer(6)]],
    GLOBAL int* fault [[buffer(7)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]
) {
    PLACE
    const int row = gx, head = gy;
    const int position = checked(positions[row], 256, fault);
    Sight see;
    see.first = 0;
    see.last = position;
    see.block_elems = 2048;
    see.keys = 0 + (idx)(head / 2) * 512;
    see.values = see.keys + 1024, see.latent = 0;
    int from = see.first / BLOCK_TOKENS, to = see.last / BLOCK_TOKENS + 1;
    from = from < gz * 4 ? gz * 4 : from, to = lesser(to, (gz + 1) * 4);
    if (from >= to) return;
    SHARED_ARRAY(float, states, 72);
    Softmax<16, 4, 0>::run(q + (idx)row * 64 + 0 + head * 16, table + starts[row], cache, see, from, to, pass[4], 0.25f, 0.0f, q, tid, states, fault);
    GLOBAL float* state = out + ((idx)(row * 4 + head) * 2 + gz) * 18;
    const float max = merged_max<16>(states, 4, -INF);
    if (tid == 0) state[0] = max;
    for (int i = tid; i <= 16; i += 128) {
        state[1 + i] = merged<16>(states, 4, max, i);
    }
}

// layer.0.attention
KERNEL(128) merge_chunks_6(
    const GLOBAL int* positions [[buffer(0)]],
    const GLOBAL float* partial [[buffer(1)]],
    GLOBAL float* out [[buffer(2)]],
    GLOBAL int* fault [[buffer(3)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]
) {
    PLACE
    const int row = gx, head = gy;
    const int position = checked(positions[row], 256, fault);
    Sight see;
    see.first = 0;
    see.last = position;
    const int from = see.first / 128, count = see.last / 128 + 1 - from;
    const GLOBAL float* states = partial + ((idx)(row * 4 + head) * 2 + from) * 18;
    const float max = merged_max<16>(states, count, -INF);
    float sum = merged<16>(states, count, max, 0);
    for (int d = tid; d < 16; d += 128) {
        out[(idx)row * 64 + head * 16 + d] = merged<16>(states, count, max, 1 + d) / sum;
    }
}

// blk.0.attn_output.weight
KERNEL(128) linear_7(
    const GLOBAL float* x [[buffer(0)]],
    const GLOBAL uchar* w0 [[buffer(1)]],
    const GLOBAL float* residual [[buffer(2)]],
    GLOBAL float* out [[buffer(3)]],
    const GLOBAL int* pass [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]
) {
    PLACE
    const int first = gx * 1, rows = lesser(pass[0] - first, 1);
    SHARED_ARRAY(float, parts, 64);
    int tile = gy;
    if (tile < 4) {
        panel_products<W1, 1, 4>(w0 + (idx)tile * W1::PANEL_BYTES, x + (idx)first * 64, 64, rows, tid, parts + 0);
        for (int i = tid; i < 1 * 16; i += 128) {
            const int r = i / 16, n = tile * 16 + i % 16;
            if (r >= rows || n >= 64) continue;
            const float y0 = product<1, 4>(parts + 0, i);
            const idx o = (idx)(first + r) * 64 + 0 + n;
            out[o] = residual[o] + y0;
        }
        return;
    }
    tile -= 4;
}

// blk.0.ffn_{gate,up}.weight
KERNEL(128) linear_8(
    const GLOBAL float* x [[buffer(0)]],
    const GLOBAL uchar* w0 [[buffer(1)]],
    const GLOBAL uchar* w1 [[buffer(2)]],
    GLOBAL float* out [[buffer(3)]],
    const GLOBAL int* pass [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]
) {
    PLACE
    const int first = gx * 1, rows = lesser(pass[0] - first, 1);
    SHARED_ARRAY(float, parts, 128);
    int tile = gy;
    if (tile < 4) {
        panel_products<W4, 1, 4>(w0 + (idx)tile * W4::PANEL_BYTES, x + (idx)first * 64, 64, rows, tid, parts + 0);
        panel_products<W1, 1, 4>(w1 + (idx)tile * W1::PANEL_BYTES, x + (idx)first * 64, 64, rows, tid, parts + 64);
        for (int i = tid; i < 1 * 16; i += 128) {
            const int r = i / 16, n = tile * 16 + i % 16;
            if (r >= rows || n >= 64) continue;
            const float y0 = product<1, 4>(parts + 0, i);
            const float y1 = product<1, 4>(parts + 64, i);
            out[(idx)(first + r) * 64 + 0 + n] = silu(y0) * y1;
        }
        return;
    }
    tile -= 4;
}

// blk.0.ffn_down.weight
KERNEL(128) linear_9(
    const GLOBAL float* x [[buffer(0)]],
    const GLOBAL uchar* w0 [[buffer(1)]],
    const GLOBAL float* residual [[buffer(2)]],
    GLOBAL float* out [[buffer(3)]],
    const GLOBAL int* pass [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]
) {
    PLACE
    const int first = gx * 1, rows = lesser(pass[0] - first, 1);
    SHARED_ARRAY(float, parts, 64);
    int tile = gy;
    if (tile < 4) {
        panel_products<W4, 1, 4>(w0 + (idx)tile * W4::PANEL_BYTES, x + (idx)first * 64, 64, rows, tid, parts + 0);
        for (int i = tid; i < 1 * 16; i += 128) {
            const int r = i / 16, n = tile * 16 + i % 16;
            if (r >= rows || n >= 64) continue;
            const float y0 = product<1, 4>(parts + 0, i);
            const idx o = (idx)(first + r) * 64 + 0 + n;
            out[o] = residual[o] + y0;
        }
        return;
    }
    tile -= 4;
}

// blk.1.attn_{q,k,v}.weight
KERNEL(128) linear_10(
    const GLOBAL float* x [[buffer(0)]],
    const GLOBAL uchar* w0 [[buffer(1)]],
    const GLOBAL uchar* w1 [[buffer(2)]],
    const GLOBAL uchar* w2 [[buffer(3)]],
    GLOBAL float* out [[buffer(4)]],
    const GLOBAL int* pass [[buffer(5)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]
) {
    PLACE
    const int first = gx * 1, rows = lesser(pass[0] - first, 1);
    SHARED_ARRAY(float, parts, 64);
    int tile = gy;
    if (tile < 4) {
        panel_products<W1, 1, 4>(w0 + (idx)tile * W1::PANEL_BYTES, x + (idx)first * 64, 64, rows, tid, parts + 0);
        for (int i = tid; i < 1 * 16; i += 128) {
            const int r = i / 16, n = tile * 16 + i % 16;
            if (r >= rows || n >= 64) continue;
            const float y0 = product<1, 4>(parts + 0, i);
            out[(idx)(first + r) * 128 + 0 + n] = y0;
        }
        return;
    }
    tile -= 4;
    if (tile < 2) {
        panel_products<W2, 1, 4>(w1 + (idx)tile * W2::PANEL_BYTES, x + (idx)first * 64, 64, rows, tid, parts + 0);
        for (int i = tid; i < 1 * 16; i += 128) {
            const int r = i / 16, n = tile * 16 + i % 16;
            if (r >= rows || n >= 32) continue;
            const float y0 = product<1, 4>(parts + 0, i);
            out[(idx)(first + r) * 128 + 64 + n] = y0;
        }
        return;
    }
    tile -= 2;
    if (tile < 2) {
        panel_products<W5, 1, 4>(w2 + (idx)tile * W5::PANEL_BYTES, x + (idx)first * 64, 64, rows, tid, parts + 0);
        for (int i = tid; i < 1 * 16; i += 128) {
            const int r = i / 16, n = tile * 16 + i % 16;
            if (r >= rows || n >= 32) continue;
            const float y0 = product<1, 4>(parts + 0, i);
            out[(idx)(first + r) * 128 + 96 + n] = y0;
        }
        return;
    }
    tile -= 2;
}

// blk.1.ffn_{gate,up}.weight
KERNEL(128) linear_11(
    const GLOBAL float* x [[buffer(0)]],
    const GLOBAL uchar* w0 [[buffer(1)]],
    const GLOBAL uchar* w1 [[buffer(2)]],
    GLOBAL float* out [[buffer(3)]],
    const GLOBAL int* pass [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]
) {
    PLACE
    const int first = gx * 1, rows = lesser(pass[0] - first, 1);
    SHARED_ARRAY(float, parts, 128);
    int tile = gy;
    if (tile < 4) {
        panel_products<W4, 1, 4>(w0 + (idx)tile * W4::PANEL_BYTES, x + (idx)first * 64, 64, rows, tid, parts + 0);
        panel_products<W6, 1, 4>(w1 + (idx)tile * W6::PANEL_BYTES, x + (idx)first * 64, 64, rows, tid, parts + 64);
        for (int i = tid; i < 1 * 16; i += 128) {
            const int r = i / 16, n = tile * 16 + i % 16;
            if (r >= rows || n >= 64) continue;
            const float y0 = product<1, 4>(parts + 0, i);
            const float y1 = product<1, 4>(parts + 64, i);
            out[(idx)(first + r) * 64 + 0 + n] = silu(y0) * y1;
        }
        return;
    }
    tile -= 4;
}

// blk.1.ffn_down.weight
KERNEL(128) linear_12(
    const GLOBAL float* x [[buffer(0)]],
    const GLOBAL uchar* w0 [[buffer(1)]],
    const GLOBAL float* residual [[buffer(2)]],
    GLOBAL float* out [[buffer(3)]],
    const GLOBAL int* pass [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]
) {
    PLACE
    const int first = gx * 1, rows = lesser(pass[0] - first, 1);
    SHARED_ARRAY(float, parts, 64);
    int tile = gy;
    if (tile < 4) {
        panel_products<W7, 1, 4>(w0 + (idx)tile * W7::PANEL_BYTES, x + (idx)first * 64, 64, rows, tid, parts + 0);
        for (int i = tid; i < 1 * 16; i += 128) {
            const int r = i / 16, n = tile * 16 + i % 16;
            if (r >= rows || n >= 64) continue;
            const float y0 = product<1, 4>(parts + 0, i);
            const idx o = (idx)(first + r) * 64 + 0 + n;
            out[o] = residual[o] + y0;
        }
        return;
    }
    tile -= 4;
}

// select_rows
KERNEL(32) select_rows_13(
    const GLOBAL float* x_v0 [[buffer(0)]],
    const GLOBAL int* rows_v1 [[buffer(1)]],
    GLOBAL float* out_v2 [[buffer(2)]],
    const GLOBAL int* pass [[buffer(3)]],
    GLOBAL int* fault [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]
) {
    PLACE
    const int i0 = gx;
    const int n0 = checked(rows_v1[i0], pass[0], fault);
    for (int i1 = tid; i1 < 64; i1 += 32) {
        const float r0 = x_v0[(idx)n0 * 64 + i1];
        out_v2[(idx)i0 * 64 + i1] = r0;
    }
}

// output.weight
KERNEL(128) linear_14(
    const GLOBAL float* x [[buffer(0)]],
    const GLOBAL uchar* w0 [[buffer(1)]],
    GLOBAL float* out [[buffer(2)]],
    const GLOBAL int* pass [[buffer(3)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]
) {
    PLACE
    const int first = gx * 1, rows = lesser(pass[1] - first, 1);
    SHARED_ARRAY(float, parts, 64);
    int tile = gy;
    if (tile < 18) {
        panel_products<W0, 1, 4>(w0 + (idx)tile * W0::PANEL_BYTES, x + (idx)first * 64, 64, rows, tid, parts + 0);
        for (int i = tid; i < 1 * 16; i += 128) {
            const int r = i / 16, n = tile * 16 + i % 16;
            if (r >= rows || n >= 288) continue;
            const float y0 = product<1, 4>(parts + 0, i);
            out[(idx)(first + r) * 288 + 0 + n] = y0;
        }
        return;
    }
    tile -= 18;
}
