//! Refusals as HTTP answers: a `Status` document with code, reason for programs, message for people.

use std::time::Duration;

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::guard::Told;
use crate::{
    blobs::BlobError,
    hub::HubError,
    link::{ExecError, LogsError},
    store::StoreError,
    streams::sink::SinkError,
    trust::TrustError,
};

/// Why a request is not served.
#[derive(Debug)]
pub(crate) struct ApiError {
    code: StatusCode,
    reason: &'static str,
    message: String,
    /// When to come again.
    wait: Option<Duration>,
}

impl ApiError {
    /// A refusal.
    pub(crate) fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { code, reason, message: message.into(), wait: None }
    }

    /// 400: not understood.
    pub(crate) fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 404.
    pub(crate) fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    /// 409: understood, and against what is. Asking again does not help, other than with `Conflict`, which is a change
    /// for an older version.
    pub(crate) fn conflict(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::CONFLICT, "Refused", message)
    }

    /// 413.
    pub(crate) fn too_large(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "TooLarge", message)
    }

    /// 422: understood, and against a rule.
    pub(crate) fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
    }

    /// 429: `what` is too often, and goes again after `wait`.
    pub(crate) fn too_many(what: &str, wait: Duration) -> ApiError {
        let seconds = wait.as_secs().saturating_add(1);
        let text = format!("{what}; try again in {seconds} s");
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", text);
        ApiError { wait: Some(Duration::from_secs(seconds)), ..error }
    }

    /// Whether somebody was not let in.
    pub(crate) fn is_unauthorized(&self) -> bool {
        self.code == StatusCode::UNAUTHORIZED
    }

    /// What is wrong, for people.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// 503: later perhaps.
    pub(crate) fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "Unavailable", message)
    }

    fn internal(error: &(dyn std::error::Error + 'static)) -> ApiError {
        let message = chain(error);
        tracing::error!(message, "a request failed at the hub");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal", message)
    }
}

/// An error with its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = json!({
            "apiVersion": proto::API_VERSION,
            "kind": "Status",
            "code": self.code.as_u16(),
            "reason": self.reason,
            "message": &self.message,
        });
        let mut response = (self.code, Json(body)).into_response();
        if self.code == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        let busy = (self.code == StatusCode::SERVICE_UNAVAILABLE).then_some(Duration::from_secs(1));
        if let Some(wait) = self.wait.or(busy) {
            response.headers_mut().insert(header::RETRY_AFTER, wait.as_secs().into());
        }
        response.extensions_mut().insert(Told { name: None, detail: self.message });
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        let (code, reason) = match &error {
            StoreError::AlreadyExists { .. } => (StatusCode::CONFLICT, "AlreadyExists"),
            StoreError::Conflict { .. } => (StatusCode::CONFLICT, "Conflict"),
            StoreError::NotFound { .. } => (StatusCode::NOT_FOUND, "NotFound"),
            StoreError::Gone(_) => (StatusCode::GONE, "Gone"),
            StoreError::WrongKind { .. } => (StatusCode::BAD_REQUEST, "BadRequest"),
            _ => return ApiError::internal(&error),
        };
        ApiError::new(code, reason, error.to_string())
    }
}

impl From<BlobError> for ApiError {
    fn from(error: BlobError) -> ApiError {
        match &error {
            BlobError::WrongDigest { .. } => ApiError::invalid(error.to_string()),
            BlobError::TooLarge { .. } => ApiError::too_large(error.to_string()),
            BlobError::NotFound(_) => ApiError::not_found(error.to_string()),
            BlobError::Receive(_) => ApiError::bad_request(chain(&error)),
            BlobError::DiskFull(_) => ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "DiskFull", error.to_string()),
            _ => ApiError::internal(&error),
        }
    }
}

impl From<TrustError> for ApiError {
    fn from(error: TrustError) -> ApiError {
        match error {
            TrustError::Store(error) => error.into(),
            TrustError::Blobs(error) => error.into(),
            TrustError::Missing { .. } | TrustError::Changed { .. } | TrustError::NoRoot => {
                ApiError::conflict(error.to_string())
            }
            TrustError::Refused(_) | TrustError::Manifest { .. } | TrustError::Path(_) => {
                ApiError::invalid(error.to_string())
            }
            _ => ApiError::internal(&error),
        }
    }
}

impl From<HubError> for ApiError {
    fn from(error: HubError) -> ApiError {
        match error {
            HubError::Store(error) => error.into(),
            HubError::Blobs(error) => error.into(),
            HubError::Trust(error) => error.into(),
            HubError::NoTrustRoot => ApiError::conflict(error.to_string()),
            HubError::TokenBounds | HubError::Label(_) | HubError::Name(_) => ApiError::invalid(error.to_string()),
            _ => ApiError::internal(&error),
        }
    }
}

impl From<ExecError> for ApiError {
    fn from(error: ExecError) -> ApiError {
        match &error {
            ExecError::Refused(_) | ExecError::TooOld(_) => ApiError::conflict(error.to_string()),
            _ => ApiError::unavailable(error.to_string()),
        }
    }
}

impl From<LogsError> for ApiError {
    fn from(error: LogsError) -> ApiError {
        match error {
            LogsError::NotFound(_) => ApiError::not_found(error.to_string()),
            _ => ApiError::unavailable(error.to_string()),
        }
    }
}

impl From<SinkError> for ApiError {
    fn from(error: SinkError) -> ApiError {
        match error {
            SinkError::Unavailable(_) | SinkError::Unknown(_) => {
                ApiError::unavailable(format!("the records cannot be read now: {error}; try again"))
            }
            SinkError::Damaged(_) => ApiError::internal(&error),
        }
    }
}
