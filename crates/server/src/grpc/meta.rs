//! What a call says in its metadata: its name, its time, and whose it is.

use std::sync::Arc;
use std::time::Duration;

use baichuan_engine::{Backend, RequestId, Violations};
use http::HeaderMap;
use tonic::{Request, Response, Status};

use super::admission;
use super::status::{self, REQUEST_ID};
use crate::app::App;
use crate::calls::{BeginError, Call};
use crate::error::{ApiError, Denied, Unavailable, Unproven};
use crate::identity::Identity;
use crate::identity::tenant::Running;
use crate::models::Model;
use crate::telemetry::call_trace::CallTrace;

const TIMEOUT: &str = "grpc-timeout";
const MAX_ID_BYTES: usize = 128;

/// What a call says in its metadata.
pub(super) struct Meta {
    /// Name from the metadata; the pipeline made one where the caller gave none.
    id: RequestId,
    timeout: Option<Duration>,
    /// The pipeline knows it, or the call would not be here.
    identity: Option<Identity>,
    /// Its place among its tenant's calls, where it has one already.
    running: Option<Arc<Running>>,
    trace: CallTrace,
}

/// Whether `id` may name a request: 1 to 128 visible ASCII characters.
pub(crate) fn is_request_id(id: &str) -> bool {
    (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
}

/// A new request's name.
pub(super) fn new_request_id() -> RequestId {
    RequestId::new(uuid::Uuid::now_v7().to_string())
}

/// Violations of a `request_id` field, which may be empty.
pub(super) fn check_request_id(field: &str, id: &str, violations: &mut Violations) {
    violations.that(id.is_empty() || is_request_id(id), field, || {
        format!(
            "must be 1 to {MAX_ID_BYTES} visible ASCII characters, got {} bytes",
            id.len()
        )
    });
}

impl Meta {
    /// Reads a call's metadata.
    pub(super) fn of<T>(request: &Request<T>) -> Self {
        let metadata = request.metadata();
        let id = metadata.get(REQUEST_ID).and_then(|v| v.to_str().ok());
        Self {
            id: id
                .filter(|id| is_request_id(id))
                .map_or_else(new_request_id, RequestId::new),
            timeout: timeout(metadata.as_ref()),
            identity: request.extensions().get::<Identity>().cloned(),
            running: request.extensions().get::<Arc<Running>>().cloned(),
            trace: request
                .extensions()
                .get::<CallTrace>()
                .cloned()
                .unwrap_or_default(),
        }
    }

    /// Whose the call is.
    ///
    /// # Errors
    /// Nobody's: then nothing is done for it.
    pub(super) fn identity(&self) -> Result<&Identity, ApiError> {
        self.identity
            .as_ref()
            .ok_or(ApiError::Unauthenticated(Unproven::Missing))
    }

    /// The call's place among its tenant's that run at once, while what is returned lives.
    ///
    /// # Errors
    /// The tenant has as many as it may.
    pub(super) fn running(&self, app: &App) -> Result<Arc<Running>, ApiError> {
        match &self.running {
            Some(running) => Ok(running.clone()),
            None => admission::begin(app, &self.identity()?.tenant),
        }
    }

    /// How long the first message may take to come.
    pub(super) fn time_to_arrive(&self, app: &App) -> Duration {
        let time = app.config.grpc.request_timeout;
        self.timeout.map_or(time, |asked| asked.min(time))
    }

    /// The model called `name`, where the caller may use it.
    pub(super) fn model(&self, app: &App, name: &str) -> Result<Arc<Model>, ApiError> {
        let tenant = &self.identity()?.tenant;
        // Before it is looked for: whether there is one is told of models that it may use alone.
        match name {
            "" if !tenant.may_use(app.models.default_name()) => {
                return Err(ApiError::Denied(Denied::DefaultModel));
            }
            "" => {}
            named => tenant.must_be_allowed(named)?,
        }
        app.models.find(name).map_err(|error| match error {
            // Who may not use a model need not know that it is there.
            ApiError::UnknownModel { name, served } => ApiError::UnknownModel {
                name,
                served: served.into_iter().filter(|m| tenant.may_use(m)).collect(),
            },
            other => other,
        })
    }

    /// The loaded backend of the model called `name`, where the caller may use it.
    pub(super) fn backend(&self, app: &App, name: &str) -> Result<Arc<dyn Backend>, ApiError> {
        let model = self.model(app, name)?;
        app.models.backend(model.name())
    }

    /// The call's name: the message's own if it has a good one, else the metadata's. Log lines and spans have it from
    /// here on.
    pub(super) fn request_id(&self, own: &str) -> RequestId {
        let id = match is_request_id(own) {
            true => RequestId::new(own),
            false => self.id.clone(),
        };
        self.named(&id);
        id
    }

    /// Takes a call up under the name `id`, of which `own` is what its message says. `limit`: how long it may take.
    ///
    /// Who gives several calls the same `x-request-id`, as applications do that pass theirs on and meshes that hedge,
    /// does not name requests by it: where a call runs under that name, another one gets a new name.
    ///
    /// # Errors
    /// Nobody's call; the server drains; a running call has the name that the message gives.
    pub(super) fn begin(
        &self,
        app: &App,
        id: &RequestId,
        own: &str,
        limit: Option<Duration>,
    ) -> Result<Call, ApiError> {
        let owner = &self.identity()?.owner;
        match app.calls.begin(owner, id.clone(), limit) {
            Err(BeginError::Draining) => Err(ApiError::Unavailable(Unavailable::Draining)),
            Err(BeginError::NameTaken) if is_request_id(own) => {
                let message = format!("a request called {own:?} is running already");
                Err(ApiError::invalid("request_id", message))
            }
            Err(BeginError::NameTaken) => {
                let id = self.renamed();
                let begun = app.calls.begin(owner, id, limit);
                begun.map_err(|_| ApiError::Unavailable(Unavailable::Draining))
            }
            Ok(call) => Ok(call),
        }
    }

    /// A new name for the call, known to its log lines and spans from here on.
    fn renamed(&self) -> RequestId {
        let id = new_request_id();
        tracing::debug!(new = %id, "a call of this x-request-id is running: this one gets a name of its own");
        self.named(&id);
        id
    }

    fn named(&self, id: &RequestId) {
        tracing::Span::current().record("request_id", id.as_str());
        self.trace.named(id.as_str());
    }

    /// The call as traces see it.
    pub(super) fn trace(&self) -> &CallTrace {
        &self.trace
    }

    /// How long the call may take: the least of `grpc-timeout`, the message's limit and the server's.
    pub(super) fn limit(&self, app: &App, time_limit_ms: Option<u32>) -> Option<Duration> {
        let own = self.own_limit(time_limit_ms);
        [own, app.config.requests.max_time].into_iter().flatten().min()
    }

    /// How long the call may take by its caller's will: the lesser of `grpc-timeout` and the message's limit.
    pub(super) fn own_limit(&self, time_limit_ms: Option<u32>) -> Option<Duration> {
        let own = time_limit_ms.map(|ms| Duration::from_millis(ms.into()));
        [self.timeout, own].into_iter().flatten().min()
    }
}

/// The `grpc-timeout` header: up to eight digits and a unit. A malformed one is none, as in every gRPC server.
pub(super) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let well_formed = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let value: u64 = well_formed.then(|| digits.parse().ok())??;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

/// A method's outcome as tonic wants it: named either way, counted and logged where it failed.
pub(super) fn answer<T>(
    app: &App,
    id: &RequestId,
    outcome: Result<T, ApiError>,
) -> Result<Response<T>, Status> {
    match outcome {
        Ok(message) => {
            let mut response = Response::new(message);
            status::name(response.metadata_mut(), id);
            Ok(response)
        }
        Err(error) => Err(failure(app, id, &error)),
    }
}

/// A failed call's status, counted and logged.
pub(super) fn failure(app: &App, id: &RequestId, error: &ApiError) -> Status {
    app.metrics.failed(error);
    error.log(id);
    status::status(error, id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_has_up_to_eight_digits_and_a_unit() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(TIMEOUT, text.parse().unwrap());
            timeout(&headers)
        };
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("7n", Some(Duration::from_nanos(7))),
            ("0m", Some(Duration::ZERO)),
            ("123456789m", None),
            ("m", None),
            ("", None),
            ("-1S", None),
            ("+1S", None),
            ("1s", None),
            ("1.5S", None),
        ] {
            assert_eq!(read(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_request_id_is_short_and_visible() {
        for (id, good) in [
            ("a", true),
            (&"x".repeat(128), true),
            ("0190a1b2-~!", true),
            ("", false),
            (&"x".repeat(129), false),
            ("a b", false),
            ("a\n", false),
            ("é", false),
        ] {
            assert_eq!(is_request_id(id), good, "{id:?}");
        }
    }
}
