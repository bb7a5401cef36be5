//! The standard health service: `""` is liveness, [`crate::Client::READINESS`] is readiness.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;
use tonic::Streaming;
use tonic_health::pb::HealthCheckResponse;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::error::Error;

/// Whether a service answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Serving,
    /// It does not, yet or any more.
    NotServing,
    /// The server does not say.
    Unknown,
    /// The server has no such service.
    ServiceUnknown,
}

impl From<HealthCheckResponse> for Health {
    fn from(response: HealthCheckResponse) -> Self {
        match response.status() {
            ServingStatus::Serving => Self::Serving,
            ServingStatus::NotServing => Self::NotServing,
            ServingStatus::Unknown => Self::Unknown,
            ServingStatus::ServiceUnknown => Self::ServiceUnknown,
        }
    }
}

/// A service's health: what it is now, then every change. Ends only with the connection.
#[derive(Debug)]
pub struct HealthWatch(pub(crate) Streaming<HealthCheckResponse>);

impl HealthWatch {
    /// The next state.
    pub async fn next(&mut self) -> Result<Option<Health>, Error> {
        Ok(self.0.message().await?.map(Health::from))
    }
}

impl Stream for HealthWatch {
    type Item = Result<Health, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = ready!(Pin::new(&mut self.0).poll_next(cx));
        Poll::Ready(item.map(|status| Ok(status?.into())))
    }
}
