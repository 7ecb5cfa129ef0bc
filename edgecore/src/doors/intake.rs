//! The outbox behind the doors.

use bytes::Bytes;
use proto::{
    env::BoxFuture,
    name::Name,
    stream::{Class, message::Lag},
};

use super::{Intake, Reason, Refusal, Taken};
use crate::outbox::{AppendError, Outbox};

impl Intake for Outbox {
    fn append<'a>(&'a self, stream: &'a Name, records: Vec<Bytes>) -> BoxFuture<'a, Result<Taken, Refusal>> {
        Box::pin(async move {
            match Outbox::append(self, stream, records).await {
                Ok(appended) => Ok(Taken { key: appended.key, range: appended.range }),
                Err(error) => Err(Refusal::new(reason(&error), error.to_string())),
            }
        })
    }

    fn streams(&self) -> &[(Name, Class)] {
        Outbox::streams(self)
    }

    fn lag(&self) -> Vec<Lag> {
        Outbox::lag(self)
    }
}

fn reason(error: &AppendError) -> Reason {
    match error {
        AppendError::UnknownStream { .. } => Reason::UnknownStream,
        AppendError::TooLarge { .. } | AppendError::TooMany { .. } | AppendError::Empty => Reason::TooLarge,
        AppendError::Full { .. } => Reason::Full,
        AppendError::Busy => Reason::Busy,
        AppendError::Failed(_) => Reason::Failed,
    }
}
