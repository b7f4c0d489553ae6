//! `nexus cache`: what people do with the table of embeddings.
//!
//! Deliberately absent: the file and the memory that a single machine keeps embeddings in, which need no looking after.

use super::Failure;
use crate::settings::TableSettings;
use clap::{Args, Subcommand};
use nexus_storage::{Created, EmbeddingTable, Purged, Sample, TableError, TableStats, Ttl, aws_config};
use std::fmt::Write as _;

/// Items that `stats` looks at. At 16 KB each, 1 MB, where a scan ends anyway, is some 60 of them.
const SAMPLE_ITEMS: u16 = 60;

#[derive(Args, Debug)]
pub(super) struct CacheArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Create the table: on demand, with TTL; or make sure that the one that is there fits
    CreateTable(CreateArgs),
    /// Print what is in the table
    Stats(StatsArgs),
    /// Delete the embeddings of one model revision, or all of them
    Purge(PurgeArgs),
}

/// Which table.
#[derive(Args, Debug)]
struct Place {
    #[command(flatten)]
    table: TableSettings,

    /// Region of the table
    #[arg(long, env = "AWS_REGION", value_name = "REGION", default_value = "us-east-1", value_parser = non_empty)]
    aws_region: String,
}

#[derive(Args, Debug)]
struct CreateArgs {
    /// Wait until the table can be used, and turn TTL on, which a table that is being created does not take
    #[arg(long)]
    wait: bool,

    #[command(flatten)]
    place: Place,
}

#[derive(Args, Debug)]
struct StatsArgs {
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["revision", "all"]))]
struct PurgeArgs {
    /// Delete what this model revision computed
    #[arg(long, value_name = "REVISION", value_parser = revision)]
    revision: Option<String>,

    /// Delete everything
    #[arg(long)]
    all: bool,

    /// Do it; without, what it would cost is told, and nothing is done
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    place: Place,
}

pub(super) fn run(args: &CacheArgs) -> Result<(), Failure> {
    let runtime = super::runtime()?;
    let text = runtime.block_on(async {
        match &args.action {
            Action::CreateTable(args) => create(args).await,
            Action::Stats(args) => stats(&args.place).await,
            Action::Purge(args) => purge(args).await,
        }
    });
    runtime.shutdown_background();
    super::print(&text?)
}

impl Place {
    async fn table(&self) -> EmbeddingTable {
        EmbeddingTable::new(&aws_config(&self.aws_region).await, self.table.name())
    }

    /// `the table embeddings in eu-west-1`
    fn shown(&self) -> String {
        format!("the table {} in {}", self.table.name(), self.aws_region)
    }
}

fn non_empty(s: &str) -> Result<String, String> {
    if s.is_empty() { Err("something, or nothing at all".to_owned()) } else { Ok(s.to_owned()) }
}

/// As `/ready` and `x-nexus-model-revision` have it. Anything else would read all of the table and delete nothing.
fn revision(s: &str) -> Result<String, String> {
    let valid = s.len() == 12 && s.bytes().all(|byte| byte.is_ascii_hexdigit());
    if valid { Ok(s.to_ascii_lowercase()) } else { Err("12 hexadecimal digits, as /ready has them".to_owned()) }
}

fn failure(error: TableError) -> Failure {
    Failure::Run(error.to_string())
}

async fn create(args: &CreateArgs) -> Result<String, Failure> {
    if args.wait {
        eprintln!("waiting until {} can be used", args.place.shown());
    }
    let created = args.place.table().await.create(args.wait).await.map_err(failure)?;
    Ok(tell_created(&args.place.shown(), &created))
}

fn tell_created(shown: &str, Created { new, active, ttl }: &Created) -> String {
    let state = match (new, active) {
        (true, true) => "was created",
        (true, false) => "is being created",
        (false, true) => "is there already, and fits",
        (false, false) => "is being created already",
    };
    let ttl = match ttl {
        _ if !active => "TTL comes when it can be used: run this again with --wait".to_owned(),
        Ttl::On => "TTL is on".to_owned(),
        Ttl::Off => "TTL is off".to_owned(),
        Ttl::Other(attribute) => {
            format!("TTL is on by the attribute `{attribute}`, not by `expires`: expired embeddings are not deleted")
        }
        Ttl::Unsupported => "this endpoint has no TTL: expired embeddings are not used, and not deleted".to_owned(),
    };
    format!("{shown} {state}; {ttl}\n")
}

async fn stats(place: &Place) -> Result<String, Failure> {
    let table = place.table().await;
    let stats = table.stats().await.map_err(failure)?;
    let sample = table.sample(SAMPLE_ITEMS).await.map_err(failure)?;
    Ok(tell_stats(&place.shown(), &stats, &sample))
}

fn tell_stats(shown: &str, stats: &TableStats, sample: &Sample) -> String {
    let TableStats { status, items, bytes, billing, ttl } = stats;
    let mut out = format!(
        "{shown}\nstatus       {status}\nitems        {items}, as of the last six hours\nbytes        {bytes}, as of the \
         last six hours\nbilling      {billing}\nTTL          {ttl}\n"
    );
    // Writing into a string does not fail.
    let _ = writeln!(out, "\na sample of {} items", sample.items);
    if !sample.kinds.is_empty() {
        out += "   items  version  dtype  dimensions  revision\n";
    }
    for (kind, count) in &sample.kinds {
        let _ = writeln!(
            out,
            "{count:>8}  {:>7}  {:>5}  {:>10}  {}",
            kind.version, kind.dtype, kind.dimensions, kind.revision
        );
    }
    out
}

async fn purge(args: &PurgeArgs) -> Result<String, Failure> {
    let (place, revision) = (&args.place, args.revision.as_deref());
    let table = place.table().await;
    if !args.yes {
        let stats = table.stats().await.map_err(failure)?;
        return Err(Failure::Usage(tell_cost(&place.shown(), revision, &stats)));
    }
    let progress = |purged: &Purged| eprintln!("{} looked at, {} deleted", purged.scanned, purged.deleted);
    let Purged { scanned, deleted, read_units, write_units } =
        table.purge(revision, &progress).await.map_err(failure)?;
    Ok(format!(
        "{deleted} of {scanned} embeddings were deleted from {}; that took {read_units:.1} read units and \
         {write_units:.1} write units\n",
        place.shown()
    ))
}

/// What a purge would cost, in one line.
fn tell_cost(shown: &str, revision: Option<&str>, stats: &TableStats) -> String {
    let (items, reads, writes) = (stats.items, stats.scan_read_units(), stats.delete_write_units());
    let what = match revision {
        Some(revision) => format!("and delete those of revision {revision}, at most {writes} write units"),
        None => {
            format!("and delete them, about {writes} write units; deleting the table and creating it again is free")
        }
    };
    format!(
        "this would read all {items} items of {shown} (as of the last six hours), about {reads} read units, {what}; \
         --yes does it"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats() -> TableStats {
        TableStats {
            status: "ACTIVE".into(),
            items: 1000,
            bytes: 16_500_000,
            billing: "PAY_PER_REQUEST".into(),
            ttl: Ttl::On,
        }
    }

    #[test]
    fn a_purge_says_what_it_costs_in_one_line() {
        let all = tell_cost("the table t in r", None, &stats());
        assert!(all.contains("all 1000 items of the table t in r") && all.contains("about 2015 read units"), "{all}");
        assert!(all.contains("about 17000 write units; deleting the table") && all.ends_with("--yes does it"), "{all}");
        let one = tell_cost("the table t in r", Some("r1"), &stats());
        assert!(one.contains("revision r1, at most 17000 write units"), "{one}");
        assert!(!all.contains('\n') && !one.contains('\n'));
    }

    #[test]
    fn what_creating_came_to() {
        let tell = |new, active, ttl| tell_created("the table t in r", &Created { new, active, ttl });
        assert_eq!(tell(true, true, Ttl::On), "the table t in r was created; TTL is on\n");
        assert!(tell(true, false, Ttl::Off).contains("is being created; TTL comes when it can be used"));
        assert!(tell(false, true, Ttl::On).contains("is there already, and fits"));
        assert!(tell(false, true, Ttl::Other("x".into())).contains("`x`"));
    }

    #[test]
    fn stats_say_how_old_they_are_and_what_a_sample_is() {
        let mut sample = Sample { items: 3, ..Sample::default() };
        let text = tell_stats("the table t in r", &stats(), &sample);
        assert!(text.contains("items        1000, as of the last six hours\n"), "{text}");
        let kind = nexus_storage::ItemKind {
            version: "1".into(),
            dtype: "bf16".into(),
            dimensions: "4096".into(),
            revision: "r1".into(),
        };
        sample.kinds.insert(kind, 3);
        let text = tell_stats("the table t in r", &stats(), &sample);
        assert!(text.ends_with("a sample of 3 items\n   items  version  dtype  dimensions  revision\n       3        1   bf16        4096  r1\n"), "{text}");
    }
}
