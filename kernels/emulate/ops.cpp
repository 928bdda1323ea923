// Prints what ops.cuh and desk.cuh hold, for tests/decode of crates/gpu to compare with the host's structures:
//   struct NAME BYTES, then its fields: NAME OFFSET; constants: constant NAME VALUE.
#define M40_EMULATE
#include "../desk.cuh"
#include "../matvec.cuh"

#include <cstddef>

namespace {

template <class T>
void print_struct(const char* name) {
    std::printf("struct %s %zu\n", name, sizeof(T));
}

#define FIELD(name) std::printf("%s %zu\n", #name, offsetof(Current, name));
#define CONSTANT(name) std::printf("constant %s %u\n", #name, u32{name});

void print_row() {
    using Current = Row;
    print_struct<Current>("Row");
    FIELD(token) FIELD(position) FIELD(pages) FIELD(slot)
}

void print_matvec() {
    using Current = MatvecOp;
    print_struct<Current>("MatvecOp");
    FIELD(kind) FIELD(flags) FIELD(type) FIELD(rows) FIELD(cols) FIELD(weights) FIELD(up)
    FIELD(high) FIELD(scales) FIELD(tops) FIELD(supers) FIELD(prologue) FIELD(x)
    FIELD(x_stride) FIELD(gain) FIELD(block) FIELD(block_gain) FIELD(stream) FIELD(eps)
    FIELD(block_eps) FIELD(activation) FIELD(bias) FIELD(residual) FIELD(residual_stride) FIELD(y)
    FIELD(y_stride) FIELD(softcap) FIELD(maxima) FIELD(gate) FIELD(gate_stride)
    FIELD(sums) FIELD(first_block) FIELD(blocks)
}

void print_attention() {
    using Current = AttentionOp;
    print_struct<Current>("AttentionOp");
    FIELD(kind) FIELD(flags) FIELD(heads) FIELD(kv_heads) FIELD(key_dim) FIELD(value_dim) FIELD(q)
    FIELD(k) FIELD(v) FIELD(q_stride) FIELD(k_stride) FIELD(v_stride) FIELD(q_gain) FIELD(k_gain)
    FIELD(norm_eps) FIELD(angles) FIELD(pairs) FIELD(interleaved) FIELD(cache) FIELD(page_places)
    FIELD(kv_type) FIELD(scale) FIELD(softcap) FIELD(sinks) FIELD(window) FIELD(partials)
    FIELD(chunks) FIELD(arrivals) FIELD(out) FIELD(out_stride)
}

void print_embed() {
    using Current = EmbedOp;
    print_struct<Current>("EmbedOp");
    FIELD(kind) FIELD(flags) FIELD(type) FIELD(vocab) FIELD(cols) FIELD(table) FIELD(high)
    FIELD(scales) FIELD(tops) FIELD(supers) FIELD(scale) FIELD(out) FIELD(out_stride) FIELD(ropes)
    FIELD(rope)
}

void print_rope() {
    using Current = std::remove_reference_t<decltype(EmbedOp{}.rope[0])>;
    print_struct<Current>("RopeAngles");
    FIELD(inverse_frequencies) FIELD(pairs) FIELD(magnitude) FIELD(angles)
}

void print_norm() {
    using Current = NormOp;
    print_struct<Current>("NormOp");
    FIELD(kind) FIELD(flags) FIELD(cols) FIELD(x) FIELD(x_stride) FIELD(gain) FIELD(eps)
    FIELD(residual) FIELD(residual_stride) FIELD(out) FIELD(out_stride)
}

void print_sample() {
    using Current = SampleOp;
    print_struct<Current>("SampleOp");
    FIELD(kind) FIELD(flags) FIELD(vocab) FIELD(logits) FIELD(stride) FIELD(maxima) FIELD(choices)
    FIELD(endings) FIELD(chosen)
}

void print_next() {
    using Current = Next;
    print_struct<Current>("Next");
    FIELD(token) FIELD(probability) FIELD(end) FIELD(yields)
}

void print_ending() {
    using Current = Ending;
    print_struct<Current>("Ending");
    FIELD(ticket) FIELD(left) FIELD(stop_count) FIELD(unused) FIELD(stops)
}

}  // namespace

int main() {
    print_row();
    print_matvec();
    print_attention();
    print_rope();
    print_embed();
    print_norm();
    print_sample();
    print_next();
    print_ending();
    CONSTANT(kPageTokens) CONSTANT(kChunkTokens) CONSTANT(kPassRows)
    CONSTANT(kPassesAtOnce) CONSTANT(kOpWords) CONSTANT(kMostStops)
    // Of most rows, so the least.
    constexpr u32 kPool = Batch<kPassRows>::kPool;
    CONSTANT(kPool) CONSTANT(kStepGroups) CONSTANT(kSplitHeader)
    CONSTANT(kHalfKv) CONSTANT(kInt8Kv)
    CONSTANT(kAwait) CONSTANT(kAnnounce) CONSTANT(kNowhere)
    CONSTANT(kGoesOn) CONSTANT(kNoToken) CONSTANT(kStopToken) CONSTANT(kLastToken)
    CONSTANT(kCancelled) CONSTANT(kEnded)
    CONSTANT(kEmbed) CONSTANT(kMatvec) CONSTANT(kAttention) CONSTANT(kNorm) CONSTANT(kSample)
    CONSTANT(kGatedMatvec)
    CONSTANT(kF32) CONSTANT(kF16) CONSTANT(kBF16) CONSTANT(kQ4_0) CONSTANT(kQ4_1) CONSTANT(kQ5_0)
    CONSTANT(kQ5_1) CONSTANT(kQ8_0) CONSTANT(kQ2_K) CONSTANT(kQ3_K) CONSTANT(kQ4_K) CONSTANT(kQ5_K)
    CONSTANT(kQ6_K) CONSTANT(kIQ4_NL) CONSTANT(kIQ4_XS) CONSTANT(kMXFP4)
    CONSTANT(kDeskPosted) CONSTANT(kDeskYield) CONSTANT(kDeskLeave) CONSTANT(kDeskIdle)
    CONSTANT(kDeskJob) CONSTANT(kDeskRows) CONSTANT(kDeskBeat) CONSTANT(kDeskEnded)
    CONSTANT(kDeskOutcome) CONSTANT(kDeskRan) CONSTANT(kDeskTaken) CONSTANT(kDeskLeft)
    CONSTANT(kDeskRing) CONSTANT(kCorrupt) CONSTANT(kStuck)
}
