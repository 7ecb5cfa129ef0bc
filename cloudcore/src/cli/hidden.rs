//! A line from the terminal that is not shown while it is typed.
//!
//! The echo is off before the question is asked: what is typed at once is not shown either. The terminal is as
//! before afterwards, also when the person gives up with ^C.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

/// Longest line, in bytes.
const MAX_BYTES: usize = 4 << 10;
const INTERRUPT: u8 = 3;
const END: u8 = 4;
const BACKSPACE: u8 = 8;
const KILL: u8 = 21;
const DELETE: u8 = 127;

/// Asks, and yields the line without its end.
///
/// # Errors
/// When there is no terminal, the person gives up, or it is no text.
pub fn ask(question: &str) -> io::Result<Zeroizing<String>> {
    let terminal = Quiet::open()?;
    let mut file = &terminal.file;
    file.write_all(question.as_bytes())?;
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_BYTES)); // no copy is left behind by growing
    loop {
        let mut byte = [0];
        if file.read(&mut byte)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match byte[0] {
            b'\n' | b'\r' => break,
            INTERRUPT => return Err(io::Error::new(io::ErrorKind::Interrupted, "it was given up with ^C")),
            END if line.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            END => {}
            BACKSPACE | DELETE => while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
            KILL => line.clear(),
            byte if line.len() < MAX_BYTES => line.push(byte),
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("it is longer than {MAX_BYTES} bytes"),
                ));
            }
        }
    }
    let text = std::str::from_utf8(&line).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// The terminal without echo, until dropped.
struct Quiet {
    file: File,
    before: Termios,
}

impl Quiet {
    fn open() -> io::Result<Quiet> {
        let file = File::options().read(true).write(true).open("/dev/tty")?;
        let before = tcgetattr(&file)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG);
        quiet.special_codes[SpecialCodeIndex::VMIN] = 1;
        quiet.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(&file, OptionalActions::Now, &quiet)?;
        Ok(Quiet { file, before })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // A terminal that is gone needs no mending.
        tcsetattr(&self.file, OptionalActions::Now, &self.before).ok();
        (&self.file).write_all(b"\n").ok();
    }
}
