//! Which traces this process exports, as `OTEL_TRACES_SAMPLER` says. Until it is set, none is.

use std::sync::OnceLock;

use opentelemetry::trace::SpanKind;
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, ShouldSample};

/// Which traces are exported.
#[derive(Debug, Clone)]
pub(super) struct Sampling {
    /// The decision of the process that began the trace holds.
    by_parent: bool,
    root: Sampler,
}

/// Set once this process has decided; none: it exports no spans.
static SAMPLING: OnceLock<Option<Sampling>> = OnceLock::new();

/// Exports the traces that are sampled from now on, or none; call it once there is an exporter, or is to be none.
pub(super) fn export(sampling: Option<Sampling>) {
    let _ = SAMPLING.set(sampling);
}

/// Whether this process exports spans at all.
pub fn is_exported() -> bool {
    matches!(SAMPLING.get(), Some(Some(_)))
}

/// Whether nobody has decided yet: in a program that leaves telemetry to itself.
pub(super) fn is_up_to_program() -> bool {
    SAMPLING.get().is_none()
}

/// Whether this trace is exported; `by_parent` is the decision that came with it.
pub(super) fn is_sampled(by_parent: Option<bool>, trace: u128) -> bool {
    let sampling = SAMPLING.get().and_then(Option::as_ref);
    sampling.is_some_and(|sampling| sampling.is_sampled(by_parent, trace))
}

impl Sampling {
    /// Parses the values of `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`.
    pub(super) fn new(name: Option<&str>, ratio: Option<&str>) -> Result<Self, String> {
        let name = name.filter(|name| !name.is_empty()).unwrap_or("parentbased_always_on");
        let (by_parent, root) = name.strip_prefix("parentbased_").map_or((false, name), |root| (true, root));
        let root = match root {
            "always_on" => Sampler::AlwaysOn,
            "always_off" => Sampler::AlwaysOff,
            "traceidratio" => {
                let ratio = ratio.unwrap_or("1");
                let number = ratio.parse().ok().filter(|number| (0.0..=1.0).contains(number));
                Sampler::TraceIdRatioBased(number.ok_or_else(|| {
                    format!("OTEL_TRACES_SAMPLER_ARG {ratio:?} must be a share from 0 to 1, such as 0.01")
                })?)
            }
            _ => {
                return Err(format!(
                    "OTEL_TRACES_SAMPLER {name:?} must be always_on, always_off, traceidratio, or one of these after \
                     `parentbased_`"
                ));
            }
        };
        Ok(Self { by_parent, root })
    }

    fn is_sampled(&self, by_parent: Option<bool>, trace: u128) -> bool {
        match by_parent.filter(|_| self.by_parent) {
            Some(decided) => decided,
            None => {
                let trace = trace.into();
                let result = self.root.should_sample(None, trace, "", &SpanKind::Internal, &[], &[]);
                result.decision == SamplingDecision::RecordAndSample
            }
        }
    }

    /// The same decision for spans that handlers make with `tracing`.
    pub(super) fn sampler(self) -> Sampler {
        if self.by_parent { Sampler::ParentBased(Box::new(self.root)) } else { self.root }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_or_the_ratio_decides() {
        let sampled =
            |name: Option<&str>, ratio, parent, trace| Sampling::new(name, ratio).unwrap().is_sampled(parent, trace);
        let high = u128::MAX >> 1;
        for (name, ratio, parent, trace, expected) in [
            (None, None, None, 1, true),
            (None, None, Some(false), 1, false),
            (Some("always_on"), None, Some(false), 1, true),
            (Some("always_off"), None, Some(true), 1, false),
            (Some("parentbased_traceidratio"), Some("0.01"), Some(true), high, true),
            (Some("parentbased_traceidratio"), Some("0.01"), None, high, false),
            (Some("parentbased_traceidratio"), Some("0.01"), None, 1, true),
            (Some("parentbased_always_off"), None, None, 1, false),
        ] {
            assert_eq!(sampled(name, ratio, parent, trace), expected, "{name:?} {ratio:?} {parent:?} {trace:x}");
        }
        for (name, ratio) in [("jaeger_remote", None), ("traceidratio", Some("2")), ("traceidratio", Some("x"))] {
            assert!(Sampling::new(Some(name), ratio).is_err(), "{name} {ratio:?}");
        }
    }
}
