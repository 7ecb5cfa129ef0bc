//! The audit log: who changed what, when, from where, and how it ended; shown to be whole, or where it is not.
//!
//! It lies in `audit/` of the data folder, one JSON document a line, in files of bounded size named after the sequence
//! of their first line. Each line carries its sequence, the hash of the line before and its own, which is the SHA-256
//! of its canonical form without that hash, and stands there in canonical form with it. So whatever is changed, left
//! out or put in breaks the chain at that place; the chain goes on across files.
//!
//! | what happens | what becomes of it |
//! |---|---|
//! | a request that changes something | a line `asked` before it is done, one with the outcome before it is answered |
//! | the log cannot be written | such requests are refused; the next one tries again |
//! | power is cut in a line | what is torn is dropped when the log is next written, and line `repair` says so |
//! | the log has 256 MiB | line `trim` names the end of its oldest files, which are removed then, if they are older than 14 days |
//! | it has 4 GiB | so it is with newer ones, and the line says `early`; no single user can make so many changes within 14 days |
//! | lines are cut off at the end, or all of it is written anew | only a head that was kept elsewhere shows it |
//!
//! Whoever has the hub's machine can write a new chain. That is why heads ([`Head`], `HASH@SEQUENCE`) are to be kept
//! elsewhere: `crossdock audit head` shows it, the hub's log names it every hour, every answer to a change carries it.
//!
//! [`line`] is a line, [`check`] judges lines, both pure; [`log`] is the files.

pub mod check;
pub mod line;
pub mod log;

pub use self::{
    check::{Broken, Report},
    line::{Entry, Head, Line},
    log::{Audit, AuditError},
};
