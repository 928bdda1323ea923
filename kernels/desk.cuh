// The desk: words of the host's memory through which it talks with a kernel that stays. Jobs come one
// after another, each some passes over the same rows; what a pass has chosen goes to the host when the
// pass ends. README.md says who writes what in which order; crates/gpu/src/desk.rs is the other end.
//
// An access crosses the bus, so one warp of one block does it, and device memory tells the others.
#pragma once

#include "block.cuh"

// Words of the desk. Those of a line are written by one side.
enum DeskWord : u32 {
    // The host's.
    kDeskPosted = 0,  // number of the latest job, never 0
    kDeskYield = 1,   // the job of this number ends with the pass that runs
    kDeskLeave = 2,   // not 0: the kernel leaves when it has no job
    kDeskIdle = 3,    // microseconds without a job after which it leaves by itself
    kDeskJob = 32,    // the first words of a Pass, and their and its rows' check
    kDeskRows = 64,   // its rows; those that it does not have are 0
    // The kernel's.
    kDeskBeat = 96,      // another number after every pass, and every look for a job
    kDeskEnded = 97,     // number of the job that ended last
    kDeskOutcome = 98,   // its Outcome
    kDeskRan = 99,       // passes of it that ran
    kDeskTaken = 100,    // number of the job taken last, once the kernel has left
    kDeskLeft = 101,     // 1: it has left
    kDeskRing = 128,     // [kPassesAtOnce][kPassRows] Told
};

// How a job has ended.
enum Outcome : u32 {
    kRan = 0,
    kCorrupt = 1,  // it is none that a host posts; nothing was done
    kStuck = 2,    // blocks waited in vain for each other
};

// A pass as the host, or the pass before, describes it.
struct Pass {
    u32 rows;      // 0: of no job, the kernel leaves
    u32 passes;    // of the job; this and the following are of jobs alone
    u32 sequence;  // of the first pass in the ring
    u32 job;       // its number
    Row row[kPassRows];
};

// What a pass has chosen for a row: a Next whose last word says that the others are there.
struct Told {
    u32 token;
    float probability;
    u32 end;
    u32 sequence;  // of the pass: each has another
};

// What is the same of one job only: a word that differs changes it for certain. `index`: of the word
DEVICE u32 check_of(u32 word, u32 index) { return rotate_left(word * 0x9E3779B1u, index); }

DEVICE void report_job(u32* desk, u32 job, Outcome outcome, u32 ran) {
    store_to_host(desk + kDeskOutcome, outcome);
    store_to_host(desk + kDeskRan, ran);
    __threadfence_system();
    store_to_host(desk + kDeskEnded, job);
}

// Waits for the job after `taken`, by one warp, and leaves it where all blocks find it: a pass of no
// rows if none comes, or if the host says so.
DEVICE_CALLED void take_job(u32* desk, Pass* pass, u32 taken, u32 most_rows, u32* beat) {
    constexpr u32 kHeader = 4;
    const u32 lane = threadIdx.x % kLanes;
    const u64 begun = nanoseconds();
    for (u32 polls = 0;; ++polls) {
        // A few words side by side: one access.
        const u32 word = load_from_host(desk + lane % kHeader);
        const u32 posted = __shfl_sync(kAllLanes, word, kDeskPosted);
        if (posted == taken) {
            const u32 leave = __shfl_sync(kAllLanes, word, kDeskLeave);
            const u64 idle = u64{__shfl_sync(kAllLanes, word, kDeskIdle)} * 1000;
            const bool late = nanoseconds() - begun > idle || polls > kMostPolls;
            // Clocks of lanes may differ.
            const bool leaves = leave != 0 || (__ballot_sync(kAllLanes, late) & 1) != 0;
            if (lane == 0 && leaves) {
                pass->rows = 0;
                pass->job = taken;
            }
            if (leaves) {
                return;
            }
            if (lane == 0) {
                store_to_host(desk + kDeskBeat, ++*beat);
            }
            continue;
        }
        __threadfence_system();
        const u32 header = load_from_host(desk + kDeskJob + lane % (kHeader + 1));
        const u32 row = load_from_host(desk + kDeskRows + lane);
        u32 sum = check_of(row, kHeader + lane);
        sum += lane < kHeader ? check_of(header, lane) : 0;
#pragma unroll
        for (u32 lanes = kLanes / 2; lanes > 0; lanes /= 2) {
            sum += __shfl_xor_sync(kAllLanes, sum, lanes);
        }
        const u32 rows = __shfl_sync(kAllLanes, header, 0);
        const u32 passes = __shfl_sync(kAllLanes, header, 1);
        const bool sound = __shfl_sync(kAllLanes, header, 3) == posted &&
                           __shfl_sync(kAllLanes, header, kHeader) == sum;
        if (sound && rows - 1 < most_rows && passes - 1 < kPassesAtOnce) {
            if (lane < kHeader) {
                reinterpret_cast<u32*>(pass)[lane] = header;
            }
            reinterpret_cast<u32*>(pass->row)[lane] = row;
            return;
        }
        if (lane == 0) {
            report_job(desk, posted, kCorrupt, 0);
        }
        taken = posted;
    }
}

// Tells the host what a pass of a job has chosen, by one warp whose lanes have the rows' Next; and, if
// it was the last, that the job has ended.
DEVICE_CALLED void tell_pass(u32* desk, u32 pass, u32 rows, uint4 next, u32 sequence, u32 ended,
                             u32* beat) {
    const u32 lane = threadIdx.x % kLanes;
    u32* told = desk + kDeskRing + (pass * kPassRows + lane) * (sizeof(Told) / 4);
    if (lane < rows) {
        store_to_host(told, next.x);
        store_to_host(told + 1, next.y);
        store_to_host(told + 2, next.z);
    }
    __threadfence_system();
    if (lane < rows) {
        store_to_host(told + 3, sequence);
    }
    if (lane == 0) {
        store_to_host(desk + kDeskBeat, ++*beat);
        if (ended != 0) {
            report_job(desk, ended, kRan, pass + 1);
        }
    }
}

// The kernel's last word.
DEVICE void tell_left(u32* desk, u32 taken) {
    store_to_host(desk + kDeskTaken, taken);
    __threadfence_system();
    store_to_host(desk + kDeskLeft, 1);
}
