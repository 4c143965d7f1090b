//! The span of a commit. It belongs to no task's trace, for it stores what came of many; it refers to each whose attempt is
//! traced.

use std::time::SystemTime;

use millpond::bus::read::outcomes::{OutcomeBody, OutcomeMessage, OutcomeStream};
use millpond::telemetry::{SPAN_LINKS_MAX, Span, SpanKind, TraceContext, record};

/// Records the span of a commit; none where no attempt of it is traced.
pub(crate) fn record_commit(from: OutcomeStream, messages: &[OutcomeMessage], started: SystemTime) {
    // Whether to sample was decided where the attempts were traced.
    let Some(trace) = TraceContext::begin_sampled() else { return };
    let mut links: Vec<TraceContext> = Vec::new();
    for message in messages {
        match &message.body {
            Ok(OutcomeBody::Results(_, pack, _)) => {
                links.extend(pack.outcomes.iter().filter_map(|o| link(o.trace.as_deref(), o.span.as_deref())));
            }
            Ok(OutcomeBody::Dead(_, evidence)) => {
                links.extend(link(evidence.trace.as_deref(), evidence.span.as_deref()));
            }
            Err(_) => {}
        }
        // The span keeps no more.
        if links.len() > SPAN_LINKS_MAX {
            break;
        }
    }
    if links.is_empty() {
        return;
    }
    let mut span = Span::new(("store", Some("process")), from.stream(), SpanKind::Consumer, (trace, None), started);
    span.message_count(messages.len());
    links.into_iter().for_each(|to| span.link(to));
    record(span);
}

fn link(trace: Option<&str>, span: Option<&str>) -> Option<TraceContext> {
    TraceContext::of_ids(trace?, span?)
}
