//! Where records are written to: buffered, and aware of a reader that has seen enough.

use std::io::{self, BufWriter, ErrorKind, Write};

/// A buffered output.
pub struct Pipe {
    inner: BufWriter<Box<dyn Write + Send>>,
    closed: bool,
}

impl Pipe {
    /// Writes to `inner`.
    pub fn new(inner: impl Write + Send + 'static) -> Pipe {
        Pipe { inner: BufWriter::with_capacity(64 << 10, Box::new(inner)), closed: false }
    }

    /// Whether its reader is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// How a command ends that wrote here: quietly if nobody reads on, as `head` expects it.
    ///
    /// # Errors
    /// The command's own, and what could not be written for another reason.
    pub fn settle(mut self, outcome: anyhow::Result<()>) -> anyhow::Result<()> {
        let outcome = outcome.and_then(|()| Ok(self.flush()?));
        if self.closed { Ok(()) } else { outcome }
    }

    fn note<T>(&mut self, outcome: io::Result<T>) -> io::Result<T> {
        outcome.map_err(|error| {
            self.closed |= error.kind() == ErrorKind::BrokenPipe;
            io::Error::new(error.kind(), format!("could not write the output: {error}"))
        })
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let outcome = self.inner.write(bytes);
        self.note(outcome)
    }

    fn flush(&mut self) -> io::Result<()> {
        let outcome = self.inner.flush();
        self.note(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_is_gone_is_no_failure_and_a_full_disk_is() {
        for (kind, ends_well) in [(ErrorKind::BrokenPipe, true), (ErrorKind::StorageFull, false)] {
            let mut pipe = Pipe::new(Broken(kind));
            let outcome = pipe.write_all(&[0; 100]).map_err(Into::into); // buffered still
            assert_eq!(pipe.settle(outcome).is_ok(), ends_well, "{kind}");
            let mut pipe = Pipe::new(Broken(kind));
            let outcome = pipe.write_all(&[0; 1 << 20]).map_err(Into::into);
            assert_eq!((pipe.is_closed(), pipe.settle(outcome).is_ok()), (ends_well, ends_well), "{kind}");
        }
        let pipe = Pipe::new(io::sink());
        assert!(pipe.settle(Err(anyhow::anyhow!("the hub said no"))).is_err());
    }
}
