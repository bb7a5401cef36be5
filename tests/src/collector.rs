//! A collector that speaks OTLP over gRPC and keeps what it gets, for tests to look at.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{HistogramDataPoint, Metric};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::sync::DropGuard;
use tonic::{Request, Response, Status};

use crate::wait::within;

/// A running collector.
pub struct Collector {
    address: SocketAddr,
    got: Got,
    _stop: DropGuard,
}

/// What came in.
#[derive(Clone, Default)]
struct Got {
    /// Answers only to who has been gone for long.
    stuck: bool,
    spans: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    metrics: Arc<Mutex<Vec<ExportMetricsServiceRequest>>>,
}

impl Collector {
    /// One that takes everything.
    pub async fn start() -> Self {
        Self::with(Got::default()).await
    }

    /// One that accepts calls and never answers.
    pub async fn stuck() -> Self {
        Self::with(Got {
            stuck: true,
            ..Got::default()
        })
        .await
    }

    async fn with(got: Got) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(got.clone()))
            .add_service(MetricsServiceServer::new(got.clone()));
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let ended = stop.clone().cancelled_owned();
        tokio::spawn(server.serve_with_incoming_shutdown(incoming, ended));
        Self {
            address,
            got,
            _stop: stop.drop_guard(),
        }
    }

    /// As `OTEL_EXPORTER_OTLP_ENDPOINT` takes it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        let got = self.got.spans.lock().unwrap();
        let resources = got.iter().flat_map(|request| &request.resource_spans);
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    /// Everything that came in, as text: to look for what must not be there.
    pub fn everything(&self) -> String {
        let (spans, metrics) = (self.got.spans.lock().unwrap(), self.got.metrics.lock().unwrap());
        format!("{spans:?} {metrics:?}")
    }

    /// An attribute of the resource of the first spans.
    pub fn resource(&self, name: &str) -> Option<String> {
        let got = self.got.spans.lock().unwrap();
        let resource = got.first()?.resource_spans.first()?.resource.clone()?;
        attribute(&resource.attributes, name)
    }

    /// The newest of each metric.
    pub fn metrics(&self) -> Vec<Metric> {
        let got = self.got.metrics.lock().unwrap();
        let newest = got
            .last()
            .into_iter()
            .flat_map(|request| &request.resource_metrics);
        let scopes = newest.flat_map(|resource| &resource.scope_metrics);
        scopes.flat_map(|scope| scope.metrics.clone()).collect()
    }

    /// The points of a histogram in the newest export.
    pub fn histogram(&self, name: &str) -> Vec<HistogramDataPoint> {
        let named = self.metrics().into_iter().find(|metric| metric.name == name);
        match named.and_then(|metric| metric.data) {
            Some(Data::Histogram(histogram)) => histogram.data_points,
            other => panic!("{name}: {other:?}"),
        }
    }

    /// The spans, once `enough`.
    ///
    /// # Panics
    /// When they do not come.
    pub async fn until(&self, enough: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        let asked = async {
            loop {
                let spans = self.spans();
                if enough(&spans) {
                    return spans;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within("spans", asked).await
    }
}

/// An attribute's value as text, a list's in brackets.
pub fn attribute(attributes: &[KeyValue], name: &str) -> Option<String> {
    let named = attributes.iter().find(|attribute| attribute.key == name)?;
    Some(text(named.value.as_ref()?))
}

fn text(value: &AnyValue) -> String {
    match value.value.as_ref() {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(n)) => n.to_string(),
        Some(Value::DoubleValue(n)) => n.to_string(),
        Some(Value::BoolValue(b)) => b.to_string(),
        Some(Value::ArrayValue(list)) => {
            let items: Vec<String> = list.values.iter().map(text).collect();
            format!("[{}]", items.join(", "))
        }
        other => panic!("{other:?}"),
    }
}

#[tonic::async_trait]
impl TraceService for Got {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if self.stuck {
            std::future::pending::<()>().await;
        }
        self.spans.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Got {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        if self.stuck {
            std::future::pending::<()>().await;
        }
        self.metrics.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}
