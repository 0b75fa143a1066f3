// Products of activations with packed weights.
//
// W is the layout of a weight (weight.rs writes it): N columns by K elements, in PANELS of 16 columns and PANEL_BYTES bytes. A *tile*
// is 16 elements along k by 4 columns, decoded by one thread from 16-byte loads; the four threads of a quad take the four quarters
// of a panel's columns, and a quad's neighbours the tiles that follow, so that a warp reads one contiguous stretch.

// Elements 16 `tile` to 16 `tile` + 15 of a row of K, in loads of 16 bytes where rows begin at multiples of them; zero behind its end.
template <int K>
FN void row_tile(const GLOBAL float* row, int tile, LOCAL float (&a)[16]) {
    UNROLL for (int q = 0; q < 4; ++q) {
        const int k = tile * 16 + q * 4;
        uint words[4] = {0, 0, 0, 0};
        if (K % 4 == 0 && (K % 16 == 0 || k < K)) load16((const GLOBAL uchar*)(row + k), words);
        UNROLL for (int i = 0; i < 4; ++i) {
            if (K % 4 == 0) a[q * 4 + i] = as_float(words[i]);
            else a[q * 4 + i] = k + i < K ? row[k + i] : 0.0f;
        }
    }
}

// The products of `rows` (1 to ROWS) rows of x with the 16 columns of a panel, in parts: `parts` is [warps][ROWS][16], to be
// added up by `product`. Row r starts at x + r * stride.
template <class W, int ROWS, int WARPS>
FN void panel_products(const GLOBAL uchar* panel, const GLOBAL float* x, idx stride, int rows, int tid, SHARED float* parts) {
    const int lane = tid % LANES, warp = tid / LANES, quarter = lane % 4;
    float sums[ROWS][4];
    UNROLL for (int r = 0; r < ROWS; ++r) UNROLL for (int c = 0; c < 4; ++c) sums[r][c] = 0.0f;
    for (int tile = warp * 8 + lane / 4; tile < W::TILES; tile += WARPS * 8) {
        float w[16][4];
        W::decode(panel, tile, quarter, w);
        UNROLL for (int r = 0; r < ROWS; ++r) {
            float a[16];
            row_tile<W::K>(x + lesser(r, rows - 1) * stride, tile, a);
            UNROLL for (int j = 0; j < 16; ++j) {
                UNROLL for (int c = 0; c < 4; ++c) sums[r][c] = fused(w[j][c], a[j], sums[r][c]);
            }
        }
    }
    UNROLL for (int r = 0; r < ROWS; ++r) {
        UNROLL for (int c = 0; c < 4; ++c) {
            UNROLL for (int mask = 4; mask < LANES; mask *= 2) sums[r][c] = sums[r][c] + lane_xor(sums[r][c], mask);
            if (lane < 4) parts[(warp * ROWS + r) * 16 + lane * 4 + c] = sums[r][c];
        }
    }
    barrier();
}

// Element i of [ROWS][16] products.
template <int ROWS, int WARPS>
FN float product(const SHARED float* parts, int i) {
    float sum = parts[i];
    for (int w = 1; w < WARPS; ++w) sum = sum + parts[w * ROWS * 16 + i];
    return sum;
}

#define TILE_COLUMNS 64
#define TILE_K 32

// The products of `rows` (1 to ROWS) rows of x with 64 columns from `first_panel` on, by 128 threads through workgroup memory: `weights` is
// [TILE_K][TILE_COLUMNS], `inputs` is [TILE_K][ROWS + 1], so that threads which store neighbours along k use different banks. Thread t holds rows t / 16 + 8 i and columns 4 (t % 16) + c.
template <class W, int ROWS>
FN void tile_products(
    const GLOBAL uchar* w, int first_panel, const GLOBAL float* x, int rows, int tid,
    SHARED float* weights, SHARED float* inputs, LOCAL float (&sums)[ROWS / 8][4]
) {
    UNROLL for (int i = 0; i < ROWS / 8; ++i) UNROLL for (int c = 0; c < 4; ++c) sums[i][c] = 0.0f;
    for (int k0 = 0; k0 < W::TILES * 16; k0 += TILE_K) {
        if (tid < LANES) {
            const int panel = first_panel + tid / 8, odd = tid / 4 % 2, quarter = tid % 4, tile = k0 / 16 + odd;
            float decoded[16][4];
            const bool inside = panel < W::PANELS && tile < W::TILES;
            if (inside) W::decode(w + (idx)panel * W::PANEL_BYTES, tile, quarter, decoded);
            SHARED float* to = weights + odd * 16 * TILE_COLUMNS + tid / 8 * 16 + quarter * 4;
            UNROLL for (int j = 0; j < 16; ++j) {
                UNROLL for (int c = 0; c < 4; ++c) to[j * TILE_COLUMNS + c] = inside ? decoded[j][c] : 0.0f;
            }
        }
        for (int i = tid; i < ROWS * TILE_K; i += 128) {
            const int r = i / TILE_K, k = i % TILE_K;
            inputs[k * (ROWS + 1) + r] = r < rows && k0 + k < W::K ? x[(idx)r * W::K + k0 + k] : 0.0f;
        }
        barrier();
        for (int k = 0; k < TILE_K; ++k) {
            float a[ROWS / 8], b[4];
            UNROLL for (int i = 0; i < ROWS / 8; ++i) a[i] = inputs[k * (ROWS + 1) + tid / 16 + 8 * i];
            UNROLL for (int c = 0; c < 4; ++c) b[c] = weights[k * TILE_COLUMNS + tid % 16 * 4 + c];
            UNROLL for (int i = 0; i < ROWS / 8; ++i) UNROLL for (int c = 0; c < 4; ++c) sums[i][c] = fused(b[c], a[i], sums[i][c]);
        }
        barrier();
    }
}

// Element i of four, which stay in registers.
FN float pick(const LOCAL float (&of)[4], int i) { return i < 2 ? (i == 0 ? of[0] : of[1]) : (i == 2 ? of[2] : of[3]); }

// W[n][k].
template <class W>
FN float weight_at(const GLOBAL uchar* matrix, int n, int k) {
    float w[16][4], value = 0.0f;
    W::decode(matrix + (idx)(n / 16) * W::PANEL_BYTES, k / 16, n % 16 / 4, w);
    UNROLL for (int j = 0; j < 16; ++j) {
        if (j == k % 16) value = pick(w[j], n % 4);
    }
    return value;
}
