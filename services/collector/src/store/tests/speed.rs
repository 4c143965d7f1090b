//! How fast it merges and counts; run by hand: `cargo test --release -p millpond-collector speed -- --ignored --nocapture`.

use std::time::Instant;

use super::*;

/// Packs of one pull, and outcomes of one pack, under load.
const PACKS: usize = 16;
const OUTCOMES: usize = 256;

#[tokio::test]
#[ignore = "a measurement, not a test"]
async fn speed() {
    let (_dir, store) = store().await;
    let pulls = 60;
    let mut merging = std::time::Duration::ZERO;
    for pull in 0..pulls {
        let messages: Vec<EndedMessage> = (0..PACKS)
            .map(|pack| {
                let first = (pull * PACKS + pack) * OUTCOMES;
                let one = |n: usize| {
                    let mut message = outcome(&format!("j.1/{n}"), None, 1, &[Ok(7)]);
                    let Ok(EndedBody::Pack(_, pack)) = &mut message.body else { unreachable!() };
                    let outcome = pack.outcomes.remove(0);
                    let trace = Some(format!("{n:032x}"));
                    Outcome { index: Some(n as u64), started_ms: n as i64, ended_ms: n as i64 + 1, trace, ..outcome }
                };
                let outcomes = (first..first + OUTCOMES).map(one).collect();
                message(
                    EndedBody::Pack(subject(), Pack { v: 1, worker: "worker-1".into(), outcomes, cancelled: None }),
                    b"",
                )
            })
            .collect();
        let started = Instant::now();
        store.merge(Ended::Results, &messages).await.unwrap();
        merging += started.elapsed();
    }
    let count = pulls * PACKS * OUTCOMES;
    println!("{count} outcomes merged in {merging:?}: {:.0}/s", count as f64 / merging.as_secs_f64());
    let started = Instant::now();
    println!("job counted ({}) in {:?}", job(&store).await["done"], started.elapsed());
    let started = Instant::now();
    store.job_results("j", 0, 1000, Place::parse(&format!("{}.0.0", count / 2))).await.unwrap();
    println!("page of results in {:?}", started.elapsed());
    let (lone, started) = (100, Instant::now());
    for n in 0..lone {
        merge(&store, &[outcome(&format!("lone-{n}"), None, 1, &[Ok(7)])]).await;
    }
    println!("a lone outcome in {:?}", started.elapsed() / lone);
}
