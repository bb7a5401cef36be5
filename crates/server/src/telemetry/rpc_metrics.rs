//! What is counted and timed of gRPC calls, under the names that gRPC dashboards know.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use baichuan_proto::{FILE_DESCRIPTOR_SET, ROUTERS_FILE_DESCRIPTOR_SET};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use prost_types::FileDescriptorSet;
use tonic::Code;

use super::call_trace::CallTrace;
use super::names;

const BUCKETS: [f64; 16] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0,
];

/// Which method; `unknown` for every path that no service has.
#[derive(Clone, Copy, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(crate) struct MethodLabels {
    grpc_type: &'static str,
    grpc_service: &'static str,
    grpc_method: &'static str,
}

/// A method that is served.
#[derive(Clone, Copy, Debug)]
struct Method {
    labels: MethodLabels,
    /// `package.Service/Method`; absent for calls that get no span: probes and reflection would drown the others.
    traced: Option<&'static str>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct HandledLabels {
    grpc_type: &'static str,
    grpc_service: &'static str,
    grpc_method: &'static str,
    grpc_code: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct TenantLabels {
    tenant: String,
    grpc_code: &'static str,
}

const UNKNOWN: MethodLabels = MethodLabels {
    grpc_type: "unknown",
    grpc_service: "unknown",
    grpc_method: "unknown",
};

type Seconds = Family<MethodLabels, Histogram, fn() -> Histogram>;

/// Counters and times of calls.
#[derive(Clone)]
pub(crate) struct RpcMetrics {
    methods: Arc<HashMap<String, Method>>,
    started: Family<MethodLabels, Counter>,
    handled: Family<HandledLabels, Counter>,
    of_tenants: Family<TenantLabels, Counter>,
    seconds: Seconds,
}

/// A call that has begun. Dropped without [`Self::end`], it counts as cancelled by its caller.
pub(crate) struct StartedRpc {
    metrics: RpcMetrics,
    method: MethodLabels,
    traced: Option<&'static str>,
    trace: CallTrace,
    at: Instant,
    /// Whose it is, once that is known.
    tenant: Option<String>,
    ended: bool,
}

impl RpcMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let seconds: Seconds = Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let metrics = Self {
            methods: Arc::new(methods()),
            started: Family::default(),
            handled: Family::default(),
            of_tenants: Family::default(),
            seconds,
        };
        registry.register(names::RPC_STARTED, "Calls begun", metrics.started.clone());
        registry.register(names::RPC_HANDLED, "Calls ended", metrics.handled.clone());
        registry.register(
            names::TENANT_REQUESTS,
            "Calls of a tenant ended",
            metrics.of_tenants.clone(),
        );
        registry.register(names::RPC_SECONDS, "Time of a call", metrics.seconds.clone());
        metrics
    }

    /// A call to `path` begins; `trace` makes what traces see of it.
    pub(crate) fn start(
        &self,
        path: &str,
        trace: impl FnOnce(Option<&'static str>) -> CallTrace,
    ) -> StartedRpc {
        let method = self.methods.get(path);
        let traced = method.and_then(|method| method.traced);
        let method = method.map_or(UNKNOWN, |method| method.labels);
        self.started.get_or_create(&method).inc();
        StartedRpc {
            metrics: self.clone(),
            method,
            traced,
            trace: trace(traced),
            at: Instant::now(),
            tenant: None,
            ended: false,
        }
    }
}

impl StartedRpc {
    /// The call is a configured tenant's.
    pub(crate) fn is_of(&mut self, tenant: &str) {
        self.tenant = Some(tenant.to_owned());
    }

    /// The call as traces see it.
    pub(crate) fn trace(&self) -> &CallTrace {
        &self.trace
    }

    /// The call ended with this code.
    pub(crate) fn end(mut self, code: Code) {
        self.record(code);
    }

    fn record(&mut self, code: Code) {
        self.ended = true;
        let MethodLabels {
            grpc_type,
            grpc_service,
            grpc_method,
        } = self.method;
        let handled = HandledLabels {
            grpc_type,
            grpc_service,
            grpc_method,
            grpc_code: code_name(code),
        };
        self.metrics.handled.get_or_create(&handled).inc();
        if let Some(tenant) = self.tenant.take() {
            let grpc_code = code_name(code);
            let labels = TenantLabels { tenant, grpc_code };
            self.metrics.of_tenants.get_or_create(&labels).inc();
        }
        let took = self.at.elapsed();
        self.metrics
            .seconds
            .get_or_create(&self.method)
            .observe(took.as_secs_f64());
        self.trace.end(self.traced, code, took);
        tracing::debug!(
            service = grpc_service,
            method = grpc_method,
            code = code_name(code),
            seconds = took.as_secs_f64(),
            "call ended"
        );
    }
}

impl Drop for StartedRpc {
    fn drop(&mut self) {
        if !self.ended {
            self.record(Code::Cancelled);
        }
    }
}

/// Every method that is served, by path.
fn methods() -> HashMap<String, Method> {
    let mut methods = HashMap::new();
    for set in [
        FILE_DESCRIPTOR_SET,
        ROUTERS_FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ] {
        // The sets are compiled in; one that does not decode fails the test below.
        let set: FileDescriptorSet = prost::Message::decode(set).unwrap_or_default();
        for file in &set.file {
            for service in &file.service {
                // Once per process and method: label values live as long as the metrics do.
                let name: &'static str = format!("{}.{}", file.package(), service.name()).leak();
                for method in &service.method {
                    let grpc_method: &'static str = method.name().to_owned().leak();
                    let labels = MethodLabels {
                        grpc_type: match (method.client_streaming(), method.server_streaming()) {
                            (false, false) => "unary",
                            (true, false) => "client_stream",
                            (false, true) => "server_stream",
                            (true, true) => "bidi_stream",
                        },
                        grpc_service: name,
                        grpc_method,
                    };
                    let path: &'static str = format!("{name}/{grpc_method}").leak();
                    let traced = (!name.starts_with("grpc.")).then_some(path);
                    methods.insert(format!("/{path}"), Method { labels, traced });
                }
            }
        }
    }
    methods
}

/// As gRPC's own middlewares spell codes in labels.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_has_its_methods_and_anything_else_is_unknown() {
        let methods = methods();
        for (path, kind) in [
            ("/baichuan.v1.InferenceService/Generate", "server_stream"),
            ("/baichuan.v1.InferenceService/EmbedStream", "bidi_stream"),
            ("/baichuan.v1.ControlService/Abort", "unary"),
            ("/grpc.health.v1.Health/Watch", "server_stream"),
            (
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                "bidi_stream",
            ),
            (
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                "bidi_stream",
            ),
        ] {
            assert_eq!(methods[path].labels.grpc_type, kind, "{path}");
        }
        let metrics = RpcMetrics::register(&mut Registry::default());
        let started = metrics.start("/etc/passwd", |traced| {
            assert_eq!(traced, None);
            CallTrace::default()
        });
        assert_eq!(started.method, UNKNOWN);
        assert_eq!(methods["/grpc.health.v1.Health/Check"].traced, None);
        let generate = "baichuan.v1.InferenceService/Generate";
        assert_eq!(methods[&format!("/{generate}")].traced, Some(generate));
    }
}
