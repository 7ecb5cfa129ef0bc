//! Xids: the numbers under which NVIDIA's driver reports errors of a GPU.

/// Errors that an application makes by itself, and that leave the GPU well; NVIDIA's Kubernetes device plugin leaves
/// the same ones out: graphics engine exception, memory page fault, reset channel, preemptive cleanup (twice) and
/// context switch time-out.
const OF_APPLICATIONS: [u64; 6] = [13, 31, 43, 45, 68, 109];

/// Whether it speaks against the GPU.
#[must_use]
pub fn is_serious(xid: u64) -> bool {
    !OF_APPLICATIONS.contains(&xid)
}

/// What it means, for people; empty for the rare ones.
#[must_use]
pub fn meaning(xid: u64) -> &'static str {
    match xid {
        48 => "double-bit ECC error",
        61 | 62 => "internal microcontroller halted",
        63 => "a memory row is to be remapped at the next reset",
        64 => "a memory row could not be remapped",
        74 => "NVLink error",
        79 => "it has fallen off the bus",
        92 => "many single-bit ECC errors",
        94 => "contained memory error",
        95 => "uncontained memory error",
        119 | 120 => "its system processor (GSP) does not answer",
        _ => "",
    }
}
