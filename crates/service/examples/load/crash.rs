//! kill -9 at random moments while embeddings are written, and what is in the store afterwards.
//!
//! Each cycle opens the same store, asks again for texts of before, writes new ones, and is killed after a random time,
//! now and then while it still starts. A hit has to be, bit for bit, what was answered when the text was computed; a miss
//! (its write was not through) is computed anew and has to have a cosine of 1 to rounding. Of texts whose answer the kill
//! cut off there is nothing to compare with: they are kept with the others and compared at the end with a service without
//! a cache, by cosine.

use crate::Result;
use crate::client::{Ask, Pool};
use crate::server::{Plan, Server};
use crate::table::Table;
use crate::texts::{Random, batch_body, text};
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;

const ITEMS: usize = 8;
const WRITERS: u64 = 4;
/// What f32 sums in another order cost is far below this; another text's vector is far beyond.
const COSINE_MIN: f64 = 0.99999;
/// The line by which the service says that the store is open.
const OPEN: &str = "embeddings are kept\"";

#[derive(Default)]
struct Known {
    vectors: HashMap<String, Vec<f32>>,
    /// In the order in which they were answered.
    order: Vec<String>,
    /// Asked for, and never answered.
    pending: Vec<String>,
}

#[derive(Default)]
struct Sum {
    opened: usize,
    not_opened: Vec<String>,
    killed_while_starting: usize,
    hits: usize,
    misses: usize,
    hits_of_unanswered: usize,
    wrong: usize,
}

#[derive(Deserialize)]
struct Answers {
    results: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    embedding: Vec<f32>,
    cache_hit: bool,
}

pub(crate) async fn run(plan: &Plan, table: &mut Table) -> Result<()> {
    let folder = tempfile::tempdir()?;
    // So little memory that a hit comes from the store.
    let settings = [("NEXUS_CACHE", "redb"), ("NEXUS_CACHE_MEMORY_BYTES_MAX", "1")];
    let (cycles, mut random) = (plan.pick(200, 12), Random::new(90));
    let known = Arc::new(Mutex::new(Known::default()));
    let mut sum = Sum::default();
    for cycle in 0..cycles {
        let mut server = Server::spawn(plan, &settings, Some(folder.path()))?;
        if cycle % 10 == 5 {
            // While it opens the store, or repairs it.
            tokio::time::sleep(Duration::from_micros(random.below(60_000))).await;
            server.kill()?;
            sum.killed_while_starting += 1;
            continue;
        }
        server.until_ready().await?;
        if !server.log_has(OPEN, Duration::from_secs(20)).await? {
            sum.not_opened.push(format!("cycle {cycle}: {}", server.log()?.lines().last().unwrap_or_default()));
            continue;
        }
        sum.opened += 1;
        let pool = Pool::new(server.address);
        let again = again(&known, &mut random);
        check(&pool, &again, &known, &mut sum).await?;
        let writers = write(&pool, cycle, &known);
        tokio::time::sleep(Duration::from_millis(20 + random.below(500))).await;
        server.kill()?;
        writers.join_all().await;
    }
    let checked = against_no_cache(plan, &known, &mut sum).await?;
    let Sum { opened, not_opened, killed_while_starting, hits, misses, hits_of_unanswered, wrong } = sum;
    let size = std::fs::metadata(folder.path().join("embeddings.redb"))?.len();
    table.note(
        &format!("{cycles} kills, {killed_while_starting} of them while it starts"),
        format!(
            "{hits} hits compared ({hits_of_unanswered} of texts whose answer was cut off), {misses} misses, {checked} \
                 compared without a cache; the file has {}",
            crate::table::mib(size)
        ),
    );
    table.row(
        "the store opens",
        "always",
        if not_opened.is_empty() { format!("{opened} times") } else { not_opened.join("; ") },
        not_opened.is_empty() && opened + killed_while_starting == cycles,
    );
    table.row("wrong vectors", "0", wrong.to_string(), wrong == 0 && hits > 0);
    Ok(())
}

/// Texts to ask for again: the last ones, those that were cut off, and some of all.
fn again(known: &Arc<Mutex<Known>>, random: &mut Random) -> Vec<String> {
    let mut known = known.lock().unwrap_or_else(|e| e.into_inner());
    let mut texts: Vec<String> = known.pending.drain(..).take(32).collect();
    let recent = known.order.len().saturating_sub(64);
    texts.extend(known.order[recent..].iter().cloned());
    for _ in 0..32 {
        if let Ok(count @ 1..) = u64::try_from(known.order.len()) {
            texts.push(known.order[random.below(count) as usize].clone());
        }
    }
    texts
}

async fn check(pool: &Pool, texts: &[String], known: &Arc<Mutex<Known>>, sum: &mut Sum) -> Result<()> {
    if texts.is_empty() {
        return Ok(());
    }
    let answers = embed(pool, texts).await.ok_or("the texts of before are not answered")?;
    let mut known = known.lock().unwrap_or_else(|e| e.into_inner());
    for (text, Answer { embedding, cache_hit }) in texts.iter().zip(answers) {
        let before = known.vectors.get(text);
        sum.hits += usize::from(cache_hit);
        sum.misses += usize::from(!cache_hit);
        sum.hits_of_unanswered += usize::from(cache_hit && before.is_none());
        let fine = match before {
            None => true,
            Some(before) if cache_hit => same_bits(before, &embedding),
            Some(before) => cosine(before, &embedding) >= COSINE_MIN,
        };
        if !fine {
            eprintln!("   a wrong vector (hit: {cache_hit}) for {text:?}");
            sum.wrong += 1;
        }
        // What is computed now is what is stored from now on.
        if known.vectors.insert(text.clone(), embedding).is_none() {
            known.order.push(text.clone());
        }
    }
    Ok(())
}

/// Clients that embed new texts until the service is gone.
fn write(pool: &Pool, cycle: usize, known: &Arc<Mutex<Known>>) -> JoinSet<()> {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (pool, known) = (pool.clone(), Arc::clone(known));
        let mut random = Random::new(((cycle as u64) << 24) | (writer << 16) | 0x9000_0000_0000);
        writers.spawn(async move {
            loop {
                let texts: Vec<String> = (0..ITEMS).map(|_| text(&mut random)).collect();
                let answers = embed(&pool, &texts).await;
                let mut known = known.lock().unwrap_or_else(|e| e.into_inner());
                let Some(answers) = answers else {
                    known.pending.extend(texts);
                    return;
                };
                for (text, answer) in texts.into_iter().zip(answers) {
                    known.order.push(text.clone());
                    known.vectors.insert(text, answer.embedding);
                }
            }
        });
    }
    writers
}

/// What the store gave, beside what is computed without one. How many were compared.
async fn against_no_cache(plan: &Plan, known: &Arc<Mutex<Known>>, sum: &mut Sum) -> Result<usize> {
    let server = Server::start(plan, &[("NEXUS_CACHE", "off")]).await?;
    let pool = Pool::new(server.address);
    let vectors = std::mem::take(&mut known.lock().unwrap_or_else(|e| e.into_inner()).vectors);
    let texts: Vec<String> = vectors.keys().take(plan.pick(4_000, 400)).cloned().collect();
    for chunk in texts.chunks(64) {
        let answers = embed(&pool, chunk).await.ok_or("the service without a cache does not answer")?;
        for (text, answer) in chunk.iter().zip(answers) {
            if cosine(&vectors[text], &answer.embedding) < COSINE_MIN {
                eprintln!("   a vector of another text for {text:?}");
                sum.wrong += 1;
            }
        }
    }
    Ok(texts.len())
}

async fn embed(pool: &Pool, texts: &[String]) -> Option<Vec<Answer>> {
    let ask = Ask::post("/api/v1/embed/batch", batch_body(texts.iter().map(String::as_str)));
    let reply = pool.ask(&ask).await.ok().filter(|reply| reply.status == 200)?;
    let answers: Answers = serde_json::from_slice(&reply.body).ok()?;
    (answers.results.len() == texts.len()).then_some(answers.results)
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    // Of vectors of zeros there is none, and no comparison may take that for a good one.
    if a.len() == b.len() && !cosine.is_nan() { cosine } else { -1.0 }
}
