//! Whether a fault can be done to a stack, from what the stack is made of: asked before a stack is started, and again when it
//! runs.

use crate::protocol::Fault;
use crate::protocol::fault::engine_name;
use crate::stack::Config;

/// Whether a fault can be done to a stack that a configuration would start.
///
/// # Errors
/// Says what is in the way, and the fix.
pub fn check_planned(config: &Config, fault: &Fault) -> Result<(), String> {
    let servers: Vec<String> = config.places().into_iter().map(|place| place.name.to_string()).collect();
    if !config.processes.enabled {
        return in_process(fault, &servers);
    }
    let mut engines: Vec<String> =
        config.engines.all().iter().filter_map(|(_, engine, _)| engine.kind().map(str::to_owned)).collect();
    engines.sort_unstable();
    engines.dedup();
    of_processes(fault, &servers, &engines)?;
    let name = engine_name(fault.target());
    if engines.iter().any(|engine| engine == name) && config.processes.engines_command.is_none() {
        return Err(out_of_reach(name));
    }
    Ok(())
}

/// Why nothing can be done to an engine.
pub(super) fn out_of_reach(engine: &str) -> String {
    format!("{engine} can't be reached by faults: set processes.engines_command to the command that starts it")
}

/// The same for a stack in one process, of its servers.
///
/// # Errors
/// As above.
pub fn in_process(fault: &Fault, servers: &[String]) -> Result<(), String> {
    match fault {
        Fault::Kill(name) | Fault::Drain(name) if !servers.contains(name) => {
            Err(format!("there is no server {name}: there are {}", servers.join(", ")))
        }
        Fault::Drain(name) => not_the_last(name, servers),
        Fault::Kill(_) => Ok(()),
        Fault::Restart(_)
        | Fault::Pause(..)
        | Fault::Stop(..)
        | Fault::Cut { .. }
        | Fault::Flush(_)
        | Fault::Wipe(_)
        | Fault::Restore(..)
        | Fault::Fill(..)
        | Fault::FailBack(..)
        | Fault::FillDisk(..)
        | Fault::Skew { .. } => {
            Err("a stack in one process knows only kill and drain: set stack.engines to real".to_owned())
        }
    }
}

/// The same for a stack of processes, of its servers and the kinds of its engines.
///
/// # Errors
/// As above.
pub fn of_processes(fault: &Fault, servers: &[String], engines: &[String]) -> Result<(), String> {
    let name = engine_name(fault.target());
    let is_server = servers.iter().any(|server| server == fault.target());
    if !is_server && !engines.iter().any(|engine| engine == name) {
        let valid: Vec<&str> = servers.iter().chain(engines).map(String::as_str).collect();
        return Err(format!("there is no server or engine {name:?}: valid are {}", valid.join(", ")));
    }
    match fault {
        Fault::Drain(_) if !is_server => Err(format!("{name} is an engine: restart or stop it")),
        Fault::Drain(_) => not_the_last(fault.target(), servers),
        Fault::Flush(_)
        | Fault::Wipe(_)
        | Fault::Restore(..)
        | Fault::Fill(..)
        | Fault::FailBack(..)
        | Fault::FillDisk(..)
            if is_server =>
        {
            Err(format!("{name} keeps nothing: stop it"))
        }
        Fault::Flush(_) if name != "redis" => Err(format!("{name} can't be flushed, only redis can")),
        Fault::Restore(..) if name != "redis" => Err(format!("{name} can't be restored, only redis can")),
        Fault::Fill(..) | Fault::FillDisk(..) if name != "redis" => {
            Err(format!("{name} can't be filled, only redis can"))
        }
        Fault::FailBack(..) if name != "redis" => Err(format!("{name} can't fail back, only redis can")),
        Fault::Wipe(_) if name != "redis" && name != "kafka" => {
            Err(format!("{name} can't be wiped, only redis and kafka can: what others hold is nowhere else"))
        }
        Fault::Skew { .. } if !is_server => Err(format!("{name} is no server: only the clock of one can be off")),
        Fault::Cut { .. } if !is_server => Err(format!("{name} is no server: cut a server from it")),
        Fault::Cut { server, engine, .. } if !engines.iter().any(|kind| kind == engine_name(engine)) => {
            Err(format!("{server} has no way to {engine}: valid are {}", engines.join(", ")))
        }
        _ => Ok(()),
    }
}

/// A drained server's clients go to another one of its role.
fn not_the_last(name: &str, servers: &[String]) -> Result<(), String> {
    let role = |name: &str| name.rsplit_once('-').map(|(role, _)| role.to_owned()).unwrap_or_default();
    let others = servers.iter().filter(|other| *other != name && role(other) == role(name)).count();
    if others > 0 {
        return Ok(());
    }
    let role = role(name);
    Err(format!(
        "{name} is the only {role} server, its clients could go nowhere: `chatctl scale {role}=2` first, or kill it"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::profile::Profile;

    fn check(config: &Config, fault: &str) -> Result<(), String> {
        check_planned(config, &fault.parse().expect("a fault"))
    }

    #[test]
    fn a_stack_in_one_process_kills_and_drains_the_servers_that_it_will_have() {
        let config = Config { chat_servers: 3, ..Profile::Embedded.config() };
        for fault in ["kill chat-3", "drain chat-1", "kill presence-1", "kill api-1"] {
            assert_eq!(check(&config, fault), Ok(()), "{fault}");
        }
        for fault in ["drain api-1", "drain presence-1"] {
            assert!(check(&config, fault).expect_err(fault).contains("is the only"), "{fault}");
        }
        for fault in ["kill chat-9", "drain chat-4"] {
            let refused = check(&config, fault).expect_err(fault);
            assert!(refused.contains("there is no server chat-") && refused.contains("chat-3"), "{refused}");
        }
        for fault in [
            "pause redis 10s",
            "restart chat-1",
            "cut chat-1 from redis 5s",
            "flush redis",
            "wipe kafka",
            "skew chat-1 60s 5s",
        ] {
            assert!(check(&config, fault).expect_err(fault).contains("set stack.engines to real"), "{fault}");
        }
    }

    #[test]
    fn a_stack_of_processes_does_what_fits_servers_and_engines() {
        let config = Profile::Engines.config();
        for fault in [
            "kill chat-1",
            "pause redis 10s",
            "stop kafka 5s",
            "flush redis",
            "cut chat-1 from redis 5s",
            "wipe kafka",
            "restore redis 5s",
            "fill redis 5s",
            "fail-back redis 5s",
            "fill-disk redis 5s",
            "skew chat-1 -60s 5s",
        ] {
            assert_eq!(check(&config, fault), Ok(()), "{fault}");
        }
        for (fault, problem) in [
            ("kill chat-99", "there is no server or engine \"chat-99\": valid are"),
            ("pause memcached 5s", "there is no server or engine \"memcached\""),
            ("drain redis", "redis is an engine"),
            ("flush chat-1", "chat-1 keeps nothing"),
            ("flush kafka", "kafka can't be flushed"),
            ("wipe postgres", "only redis and kafka can"),
            ("wipe chat-1", "chat-1 keeps nothing"),
            ("restore kafka 5s", "only redis can"),
            ("fill kafka 5s", "only redis can"),
            ("fill chat-1 5s", "chat-1 keeps nothing"),
            ("fail-back kafka 5s", "only redis can"),
            ("fill-disk kafka 5s", "only redis can"),
            ("fill-disk chat-1 5s", "chat-1 keeps nothing"),
            ("skew redis 60s 5s", "redis is no server"),
            ("cut redis from kafka 5s", "redis is no server"),
            ("cut chat-1 from memcached 5s", "chat-1 has no way to memcached"),
        ] {
            let refused = check(&config, fault).expect_err(fault);
            assert!(refused.contains(problem), "{fault}: {refused}");
        }
    }
}
