//! Logs, spans and their way across process borders (W3C Trace Context in gRPC metadata), exported by OTLP when
//! an endpoint is configured.
//!
//! Invariant: without `OTEL_EXPORTER_OTLP_ENDPOINT` nothing is exported and no span is recorded beyond the log.

use std::sync::OnceLock;

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tonic::metadata::{AsciiMetadataKey, MetadataMap};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// Names of the environment that switch the export on (OpenTelemetry specification, "OTLP exporter").
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
];

static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// Flushes what is not exported yet when dropped.
#[derive(Debug)]
pub struct Guard(());

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(provider) = PROVIDER.get() {
            // Export is best effort: a collector that is away must not keep a daemon from ending.
            let _ = provider.shutdown();
        }
    }
}

fn exporter(service: &'static str) -> Option<SdkTracerProvider> {
    if !ENDPOINTS
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|v| !v.is_empty()))
    {
        return None;
    }
    let exporter = match opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .build()
    {
        Ok(exporter) => exporter,
        Err(error) => {
            eprintln!(
                "gantry: traces are not exported: {error}; check OTEL_EXPORTER_OTLP_ENDPOINT"
            );
            return None;
        }
    };
    let resource = opentelemetry_sdk::Resource::builder()
        .with_service_name(format!("gantry-{service}"))
        .build();
    Some(
        SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource)
            .build(),
    )
}

/// Sets up logging to stderr (filter: `GANTRY_LOG`, default `info`) and, when an endpoint is configured, OTLP.
/// Call once a process, inside the tokio runtime; a second call changes nothing.
pub fn init(service: &'static str) -> Guard {
    let filter = EnvFilter::try_from_env("GANTRY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let text = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(true)
        .with_filter(filter);
    let spans = exporter(service).map(|provider| {
        let tracer = provider.tracer("gantry");
        let _ = PROVIDER.set(provider);
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_filter(EnvFilter::new("info"))
    });
    // Failing means that a subscriber is there already, as in tests of several services in one process.
    let _ = tracing_subscriber::registry()
        .with(text)
        .with(spans)
        .try_init();
    Guard(())
}

struct Metadata<'a>(&'a mut MetadataMap);

impl Injector for Metadata<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (AsciiMetadataKey::from_bytes(key.as_bytes()), value.parse())
        {
            self.0.insert(key, value);
        }
    }
}

struct Headers<'a>(&'a http::HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// Writes the current span's context into the metadata of a call.
pub(crate) fn inject(metadata: &mut MetadataMap) {
    if PROVIDER.get().is_some() {
        let context = tracing::Span::current().context();
        TraceContextPropagator::new().inject_context(&context, &mut Metadata(metadata));
    }
}

/// The current trace as a `traceparent` value, for what is not gRPC (the shim's environment).
pub fn traceparent() -> Option<String> {
    PROVIDER.get()?;
    let mut map = std::collections::HashMap::new();
    TraceContextPropagator::new().inject_context(&tracing::Span::current().context(), &mut map);
    map.remove("traceparent")
}

/// The span of one served call, a child of the caller's.
pub(crate) fn server_span(service: &'static str, request: &http::Request<()>) -> tracing::Span {
    let span = tracing::info_span!("rpc", service, method = request.uri().path());
    if PROVIDER.get().is_some() {
        let parent = TraceContextPropagator::new().extract(&Headers(request.headers()));
        // A span without a recording layer has no parent to take.
        let _ = span.set_parent(parent);
    }
    span
}
