//! `chatctl plan`: what a deployment of some size needs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chatctl::report::{counted, human_count};
use chatctl::run::{calibration, runner, writable};
use chatctl::runtime::Tasks;
use chatctl::stack::plan::{self, Constants, Demand, Line, Part, Plan};

use crate::cli::Output;
use crate::exit::{self, Failure};
use crate::output::outln;
use crate::process::init_logging;
use crate::progress::ProgressLines;
use crate::signals;
use crate::table::Table;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Connections at the same time, such as 50M
    #[arg(long, value_name = "N", value_parser = number, default_value = "1M")]
    connections: f64,
    /// Messages that each connected user sends per day
    #[arg(long, value_name = "N", value_parser = number, default_value = "40")]
    messages_per_user_day: f64,
    /// Bytes of a message's body
    #[arg(long, value_name = "BYTES", value_parser = number, default_value = "200")]
    message_bytes: f64,
    /// Share of the messages that go to groups, in percent
    #[arg(long, value_name = "PERCENT", value_parser = share, default_value = "50")]
    group_share: f64,
    /// Members of a group that is fanned out on write
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..=100))]
    group_members: u32,
    /// Rate at the busiest minute over the mean of the day
    #[arg(long, value_name = "FACTOR", value_parser = number, default_value = "3")]
    peak: f64,
    /// Time between two heartbeats
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = crate::cli::duration)]
    heartbeat: Duration,
    /// How long messages are kept
    #[arg(long, value_name = "TIME", default_value = "365d", value_parser = crate::cli::duration)]
    retention: Duration,
    /// Copies of each message and record
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=9))]
    replication: u32,
    /// Processors of a machine
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    cores: u32,
    /// Memory of a machine in GiB
    #[arg(long, value_name = "GIB", value_parser = number, default_value = "64")]
    memory: f64,
    /// Share of a machine that is planned for, in percent
    #[arg(long, value_name = "PERCENT", value_parser = share, default_value = "50")]
    headroom: f64,
    /// Most connections of one chat server, whatever it could hold: so many are placed anew when it dies
    #[arg(long, value_name = "N", value_parser = number, default_value = "200K")]
    connections_per_server: f64,
    /// Time within which the users of the largest chat server are back after it died
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = crate::cli::duration)]
    recovery: Duration,
    /// File with constants, as --calibrate writes it
    #[arg(long, value_name = "FILE")]
    constants: Option<PathBuf>,
    /// Measures the constants on this machine first (about four minutes), and writes them to --constants
    #[arg(long)]
    calibrate: bool,
    /// How to show it
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// A number with `K`, `M` or `G` behind it.
fn number(text: &str) -> Result<f64, String> {
    let (digits, factor) = match text.trim().char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1e3),
        Some((at, 'm' | 'M')) => (&text[..at], 1e6),
        Some((at, 'g' | 'G' | 'b' | 'B')) => (&text[..at], 1e9),
        _ => (text.trim(), 1.0),
    };
    let value: f64 = digits.trim().parse().map_err(|_| format!("{text:?}: write a number such as 500K or 50M"))?;
    let value = value * factor;
    (value > 0.0 && value <= 1e11)
        .then_some(value)
        .ok_or_else(|| format!("{text:?}: valid are numbers above 0 up to 100G"))
}

fn share(text: &str) -> Result<f64, String> {
    let value: f64 =
        text.trim_end_matches('%').trim().parse().map_err(|_| format!("{text:?} is no number of percent"))?;
    (0.0..=100.0).contains(&value).then_some(value / 100.0).ok_or_else(|| "valid are 0 to 100".to_owned())
}

pub(crate) fn run(args: Args) -> Result<u8, Failure> {
    if args.headroom < 0.05 {
        return Err(Failure::usage("--headroom: at least 5 percent of a machine must be planned for"));
    }
    if args.heartbeat.is_zero() || args.retention.is_zero() || args.recovery.is_zero() {
        return Err(Failure::usage("--heartbeat, --retention and --recovery must be above 0"));
    }
    let constants = if args.calibrate {
        let path =
            args.constants.clone().ok_or_else(|| Failure::usage("--calibrate needs --constants FILE to write to"))?;
        calibrate(&path)?
    } else {
        args.constants.as_deref().map_or(Ok(Constants::default()), Constants::read).map_err(Failure::usage)?
    };
    let demand = Demand {
        connections: args.connections,
        messages_per_user_day: args.messages_per_user_day,
        message_bytes: args.message_bytes,
        group_share: args.group_share,
        group_members: args.group_members,
        peak: args.peak,
        heartbeat_s: args.heartbeat.as_secs_f64(),
        retention_days: args.retention.as_secs_f64() / 86_400.0,
        replication: f64::from(args.replication),
        cores: f64::from(args.cores),
        memory_bytes: args.memory * (1_u64 << 30) as f64,
        headroom: args.headroom,
        connections_per_server_max: args.connections_per_server,
        recovery_s: args.recovery.as_secs_f64(),
    };
    let plan = plan::plan(&demand, &constants).map_err(Failure::usage)?;
    match args.output {
        Output::Table => print_plan(&plan, &constants),
        Output::Json => {
            let value = serde_json::json!({"plan": plan, "constants": constants});
            outln!("{}", serde_json::to_string_pretty(&value).map_err(Failure::environment)?);
        }
    }
    Ok(exit::PASS)
}

/// A value with a unit that suits it.
fn human(line: &Line) -> String {
    let decimal = |value: f64| match value {
        v if v >= 1e12 => format!("{:.2} T", v / 1e12),
        v if v >= 1e9 => format!("{:.2} G", v / 1e9),
        v if v >= 1e6 => format!("{:.2} M", v / 1e6),
        v if v >= 1e5 => format!("{:.0} K", v / 1e3),
        v => format!("{} ", human_count(v.round() as u64)),
    };
    match line.unit {
        "bytes" => format!("{}B", decimal(line.value)),
        "bytes/s" => format!("{}B/s", decimal(line.value)),
        "per second" => format!("{}/s", decimal(line.value)),
        "cores" => format!("{:.2} cores", line.value),
        // A mean of a few, such as readers of a partition.
        "" if line.value < 10.0 => format!("{:.2}", line.value),
        _ => decimal(line.value).trim_end().to_owned(),
    }
}

fn print_plan(plan: &Plan, constants: &Constants) {
    let d = &plan.demand;
    let asked = format!(
        "{}, {} per user and day, {:.0} % of them to groups of {}, bodies of {:.0} bytes",
        counted(d.connections as u64, "connection"),
        of_value(d.messages_per_user_day, "message"),
        d.group_share * 100.0,
        d.group_members,
        d.message_bytes
    );
    outln!("{}", Table::new([&asked]).wrapped(COLUMNS));
    let mut part = None;
    let mut table = Table::new(["WHAT", "HOW MUCH", "ERROR", "FROM"]).wrapped(COLUMNS);
    for line in &plan.lines {
        if part.replace(line.part).is_some_and(|before| before != line.part) {
            table.row(std::array::from_fn(|_| String::new()));
        }
        let error = if line.error > 0.0 { format!("±{:.0} %", line.error * 100.0) } else { "-".to_owned() };
        table.row([title(line), human(line), error, line.why.clone() + &numbers(line, constants)]);
    }
    outln!("{table}");
    print_placement(plan);
    for note in &plan.notes {
        outln!("{}", Table::new(["limit", note]).wrapped(COLUMNS));
    }
    print_textbook(plan, constants);
    let mut table = Table::new(["", "VALUE", "ERROR", "CONSTANT, AND ITS SOURCE"]).wrapped(COLUMNS);
    for (n, constant) in constants.list().into_iter().enumerate() {
        let figure = constant.figure;
        table.row([
            format!("[{}]", n + 1),
            format!("{} {}", figure.value, constant.unit).trim().to_owned(),
            format!("±{:.0} %", figure.error * 100.0),
            format!("{}; {}", constant.what, figure.source),
        ]);
    }
    outln!("{table}");
}

/// Columns of the output.
const COLUMNS: usize = 100;

/// What a line is about; engines stand before what is asked of them.
fn title(line: &Line) -> String {
    let engine = match line.part {
        Part::Kafka => "Kafka",
        Part::Cassandra => "Cassandra",
        Part::Redis => "Redis",
        Part::Sql => "SQL",
        Part::Registry => "registry",
        Part::Load | Part::Chat | Part::Presence | Part::Api | Part::Gateway | Part::Push => "",
    };
    format!("{engine} {}", line.what).trim().to_owned()
}

/// The numbers of a line's constants in the table of them.
fn numbers(line: &Line, constants: &Constants) -> String {
    let list = constants.list();
    let numbered = list.iter().zip(1..).filter(|(constant, _)| line.constants.contains(&constant.field));
    let numbers: Vec<String> = numbered.map(|(_, n): (_, u32)| n.to_string()).collect();
    if numbers.is_empty() { String::new() } else { format!(" [{}]", numbers.join(", ")) }
}

fn print_placement(plan: &Plan) {
    let (p, spread) = (&plan.placed, &plan.placed.spread);
    let text = format!(
        "simulated with {} users ({:.0} {} each) on {} servers and {} partitions, by the rule of the API: the fullest \
         server has {:.1} % more than the mean; a server reads {:.1} partitions (most {}), so {:.2} % of all records; a \
         partition is read by {:.2} servers (most {}); a message to a group of {} becomes {:.1} records",
        human_count(p.simulated_users),
        p.users_each,
        if p.users_each.round() as u64 == 1 { "connection" } else { "connections" },
        human_count(plan.chat_servers),
        human_count(plan.partitions),
        (spread.fullest - 1.0) * 100.0,
        spread.partitions_per_server.0,
        spread.partitions_per_server.1,
        spread.partitions_per_server.0 * 100.0 / plan.partitions as f64,
        spread.servers_per_partition.0,
        spread.servers_per_partition.1,
        plan.demand.group_members,
        p.records_per_group_message
    );
    outln!("{}", Table::new(["placement", &text]).wrapped(COLUMNS));
}

/// A value that may have places behind the point, with its noun: `1 message`, `2.5 messages`.
fn of_value(value: f64, one: &str) -> String {
    if value.fract() == 0.0 { counted(value as u64, one) } else { format!("{value} {one}s") }
}

/// The figures that textbooks give, beside ours. Source: docs/design.md, section 10.
fn print_textbook(plan: &Plan, c: &Constants) {
    let connections = plan.demand.connections;
    let ours = c.server_bytes_per_connection.value + c.kernel_bytes_per_connection.value;
    let mut table = Table::new(["TEXTBOOK", "SAYS", "HERE", "WHY THEY DIFFER"]).wrapped(COLUMNS);
    let gb =
        |bytes: f64| if bytes >= 1e12 { format!("{:.2} TB", bytes / 1e12) } else { format!("{:.1} GB", bytes / 1e9) };
    table.row([
        "memory per connection".to_owned(),
        "50 KB".to_owned(),
        format!("{:.1} KB", ours / 1e3),
        "no buffers while idle, one small task; the kernel's part is the larger one".to_owned(),
    ]);
    table.row([
        "memory of all connections".to_owned(),
        gb(connections * 50e3),
        gb(connections * ours),
        "50 KB each".to_owned(),
    ]);
    let each = connections / plan.chat_servers as f64;
    table.row([
        "connections per server".to_owned(),
        "50 000 to 100 000".to_owned(),
        human_count(each as u64),
        format!(
            "machines of {} and {:.0} GiB, {:.0} % used",
            counted(plan.demand.cores as u64, "core"),
            plan.demand.memory_bytes / (1_u64 << 30) as f64,
            plan.demand.headroom * 100.0
        ),
    ]);
    table.row([
        "servers".to_owned(),
        match [1e5, 5e4].map(|each| (connections / each).ceil() as u64) {
            [least, most] if least == most => human_count(most),
            [least, most] => format!("{} to {}", human_count(least), human_count(most)),
        },
        human_count(plan.chat_servers),
        "see chat servers above".to_owned(),
    ]);
    outln!("{table}");
}

/// Measures the constants and writes them.
fn calibrate(path: &Path) -> Result<Constants, Failure> {
    init_logging();
    // Found out before four minutes of measuring.
    writable::probe_file("--constants", path)?;
    let runtime = runner::runtime()?;
    let measured = runtime.block_on(async {
        let interrupt = Tasks::new();
        signals::watch(&interrupt)?;
        Ok::<_, Failure>(calibration::measure(&interrupt, &ProgressLines { interrupt: &interrupt }).await?)
    });
    let constants = measured?;
    let text = serde_json::to_string_pretty(&constants).map_err(Failure::environment)? + "\n";
    std::fs::write(path, text).map_err(|e| Failure::environment(format!("{}: {e}", path.display())))?;
    outln!("constants  written to {}\n", path.display());
    Ok(constants)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_thing_is_told_as_one() {
        assert_eq!([1.0, 40.0, 2.5].map(|n| of_value(n, "message")), ["1 message", "40 messages", "2.5 messages"]);
    }

    #[test]
    fn numbers_have_their_letters() {
        assert_eq!(["50M", "1.5k", "7", "2G"].map(number), [Ok(5e7), Ok(1_500.0), Ok(7.0), Ok(2e9)]);
        for wrong in ["", "M", "-3", "0", "many", "1e30"] {
            assert!(number(wrong).is_err(), "{wrong}");
        }
        assert_eq!(share("50%"), Ok(0.5));
    }
}
