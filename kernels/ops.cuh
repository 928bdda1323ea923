// What a decode pass is made of: its rows, its ops, and where their data lie. crates/gpu writes these
// structures (src/ops.rs has the same fields in the same order); kernels only read them.
//
// All of a model's memory is one arena. A *place* is an offset from its start in units of 16 bytes.
#pragma once

#include "device.cuh"

typedef u32 Place;
enum : Place { kNowhere = 0xffffffff };

// A token of a pass.
struct alignas(16) Row {
    u32 token;
    u32 position;  // in its sequence
    u32 pages;     // place of the sequence's page table: [pages] u32, the numbers of its pages
    u32 slot;      // of the sequence, where SampleOp keeps its state; kNowhere: it has none
};

// The KV cache of one layer: pages of kPageTokens tokens. A page is
//   keys   [kv_heads][key_dim / 8][kPageTokens][8]: a warp whose lanes are tokens reads them whole;
//   values [kv_heads][kPageTokens][value_dim];
//   of kInt8Kv, scales of keys and scales of values, [kv_heads][kPageTokens] f32 each;
// so page p begins p * page_bytes behind the layer's start. key_dim and value_dim are multiples of 8.
enum : u32 { kPageTokens = 32 };

// What keys and values are in pages (kv.cuh).
enum KvType : u32 {
    kHalfKv = 0,  // f16
    kInt8Kv = 1,  // u8, the number times its scale + 128
};

// Tokens of the context that one block attends to at a time; where a row has more of them, blocks
// leave partial results, and the last one to finish adds them up, in order.
enum : u32 { kChunkTokens = 256 };

// Rows of a decode pass, and passes of a launch, at most.
enum : u32 { kPassRows = 8, kPassesAtOnce = 64 };

// Tokens that a sequence ends with, at most.
enum : u32 { kMostStops = 16 };

enum OpKind : u32 {
    kEmbed = 0,
    kMatvec = 1,
    kAttention = 2,
    kNorm = 3,
    kSample = 4,
    kGatedMatvec = 5,
    kOpKinds = 6,
};

// Flags of every op.
enum : u32 {
    // It reads what ops before it wrote: no block begins before all blocks have ended those.
    kAwait = 1,
    // The next op awaits this one.
    kAnnounce = 2,
    // Others tell by marks (marks.cuh) whether what was written up to here has arrived.
    kOpen = 4,
    // The mark of what the op writes.
    kMark = 8,
    // Of its input i, shifted left by 2 * i: whether it has marks, and which. A matvec's are x and the
    // residual, those of attention q, k and v.
    kMarkedInput = 16,
    kInputMark = 32,
};

// What is done to the rows a matvec multiplies with, before.
enum Prologue : u32 {
    kPlain = 0,
    // x * gain / rms(x)
    kRmsNorm = 1,
    // stream = x + block * block_gain / rms(block), stored; then stream * gain / rms(stream)
    kAddRmsNorm = 2,
};

// What is done to its results, after.
enum Activation : u32 { kNoActivation = 0, kSilu = 1, kGeluTanh = 2 };

// Every op takes kOpWords words and begins with its kind and flags.
//
// A kernel that is compiled for one program derives a structure from an op's for each of its variants:
// fields that all ops of the variant share are hidden by constants of the same name (kKnown).
enum : u32 { kOpWords = 48 };

// y = act(n(x) * W^T) [* (n(x) * U^T)] [+ bias] [+ residual], n the prologue.
struct MatvecOp {
    typedef MatvecOp Words;
    static constexpr u32 kKind = kMatvec;
    static constexpr bool kKnown = false;
    static constexpr bool kGated = false;  // whether `up` is somewhere
    static constexpr bool kSplits = false; // whether `sums` is, if known
    u32 kind, flags;
    u32 type;   // WeightType of W, and of U
    u32 rows, cols;
    Place weights;                     // W, in planes
    Place up;                          // U, of the same shape and type; or nowhere
    u32 high, scales, tops, supers;    // planes of W and U: places counted from their starts
    u32 prologue;                      // Prologue
    Place x;                           // [pass rows][x_stride] f32
    u32 x_stride;                      // floats, as all strides
    Place gain;                        // [cols] f32
    Place block, block_gain, stream;   // of kAddRmsNorm: [pass rows][x_stride], [cols], [..][x_stride];
                                       // stream nowhere: another op stores it
    float eps, block_eps;
    u32 activation;                    // Activation, of W's product; with `up` only
    Place bias;                        // [rows] f32, or nowhere
    Place residual;                    // [pass rows][residual_stride] f32, or nowhere
    u32 residual_stride;
    Place y;                           // [pass rows][y_stride] f32
    u32 y_stride;
    float softcap;                     // y = softcap * tanh(y / softcap); 0: none
    Place maxima;                      // [pass rows][blocks of the grid] {f32 value, u32 row}: the largest y
                                       // of the rows each block made (value -inf: none); or nowhere
    Place gate;                        // [pass rows][gate_stride] f32 or nowhere: y = act(gate) * (n(x) * W^T),
    u32 gate_stride;                   // what `up` does, where gate and up differ in type
    Place sums;                        // of a product whose columns kernels of many rows deal to blocks, or
                                       // nowhere: see split.cuh
    u32 first_block, blocks;           // that do it: first_block..first_block + blocks
};

// A matvec that has `up`.
struct GatedMatvecOp : MatvecOp {
    static constexpr bool kGated = true;
};

// out = softmax(scores) * values over the row's sequence, for every query head; before that, per-head
// norms and rotations of queries and keys, and the row's own keys and values into the cache.
struct AttentionOp {
    typedef AttentionOp Words;
    static constexpr u32 kKind = kAttention;
    static constexpr bool kKnown = false;
    u32 kind, flags;
    u32 heads, kv_heads, key_dim, value_dim;
    Place q, k, v;                // [pass rows][stride] f32
    u32 q_stride, k_stride, v_stride;
    Place q_gain, k_gain;         // [key_dim] f32 of the per-head RMS norms, or nowhere
    float norm_eps;
    Place angles;                 // [pass rows][pairs] {cos, sin} f32, times the table's magnitude; or nowhere
    u32 pairs;                    // rotated pairs of a head
    u32 interleaved;              // pairs are (2i, 2i + 1), otherwise (i, i + pairs)
    Place cache;                  // page 0 of the layer
    u32 page_places;              // of a page
    u32 kv_type;                  // KvType
    float scale, softcap;         // score = scale * q.k; softcap 0: none
    Place sinks;                  // [heads] f32: e^sink is added to a head's sum of weights; or nowhere
    u32 window;                   // tokens that a row sees, itself included; 0: all
    Place partials;               // [pass rows][kv_heads][chunks] of partial results, each
                                  // [heads / kv_heads][value_dim + 4] f32
    u32 chunks;                   // of the longest context that fits
    Place arrivals;               // [pass rows][kv_heads] u32, zero between ops
    Place out;                    // [pass rows][out_stride] f32
    u32 out_stride;
};

// out = table[token] * scale; and the angles of the rows' positions.
struct EmbedOp {
    typedef EmbedOp Words;
    static constexpr u32 kKind = kEmbed;
    static constexpr bool kKnown = false;
    u32 kind, flags;
    u32 type;
    u32 vocab, cols;
    Place table;                     // in planes, as weights
    u32 high, scales, tops, supers;
    float scale;
    Place out;
    u32 out_stride;
    u32 ropes;                       // tables to compute angles of, 0..=4
    struct {
        Place inverse_frequencies;   // [pairs] f32
        u32 pairs;
        float magnitude;
        Place angles;                // [pass rows][pairs] {cos, sin} f32
    } rope[4];
};

// out = x * gain / rms(x) [+ residual]; for what no matvec's prologue takes in.
struct NormOp {
    typedef NormOp Words;
    static constexpr u32 kKind = kNorm;
    static constexpr bool kKnown = false;
    u32 kind, flags;
    u32 cols;
    Place x;
    u32 x_stride;
    Place gain;
    float eps;
    Place residual;                  // or nowhere
    u32 residual_stride;
    Place out;
    u32 out_stride;
};

// The next token of each row, from its logits, and whether its sequence ends with it. A row whose
// sequence has no slot has the likeliest token chosen, and ends where there is none to choose.
struct SampleOp {
    typedef SampleOp Words;
    static constexpr u32 kKind = kSample;
    static constexpr bool kKnown = false;
    u32 kind, flags;
    u32 vocab;
    Place logits;                    // [pass rows][stride] f32; rows may be changed
    u32 stride;
    Place maxima;                    // as MatvecOp's
    Place choices;                   // [slots] Choice (choice.cuh)
    Place endings;                   // [slots] Ending
    Place chosen;                    // [passes of the launch][pass rows] Next
};

// What a pass has chosen for a row.
struct alignas(16) Next {
    u32 token;
    float probability;  // of the token; 0: there was none to choose, and the token is 0
    u32 end;            // End
    u32 yields;         // of the first row: 1 if the host wants this pass to be the job's last
};

// Whether a sequence ends with a token; of several reasons the first.
enum End : u32 {
    kGoesOn = 0,
    kNoToken = 1,    // no logit was usable
    kStopToken = 2,  // the token is one of Ending::stops
    kLastToken = 3,  // Ending::left was 1, or 0
    kCancelled = 4,  // the host asked for it
    kEnded = 5,      // it had ended in a pass before: there is no token
};

// When a sequence ends by itself. The host writes it when the sequence goes on; kernels count `left`
// down.
struct Ending {
    u32 ticket;      // cancelled once the host's word of its slot is this; never 0
    u32 left;        // tokens that may still be chosen
    u32 stop_count;
    u32 unused;
    u32 stops[kMostStops];
};

// Types of weights, in the order of crates/gpu's table.
enum WeightType : u32 {
    kF32 = 0, kF16 = 1, kBF16 = 2, kQ4_0 = 3, kQ4_1 = 4, kQ5_0 = 5, kQ5_1 = 6, kQ8_0 = 7,
    kQ2_K = 8, kQ3_K = 9, kQ4_K = 10, kQ5_K = 11, kQ6_K = 12, kIQ4_NL = 13, kIQ4_XS = 14, kMXFP4 = 15,
};
