//! `m40ctl plan`

use clap::Args;
use m40_control::{Client, Plan, PlanRequest};

use super::model_ref;
use crate::completion::names_and_files;
use crate::error::CommandError;
use crate::output::{Output, mib};

/// Show what would happen if a model was asked for now, without doing it
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// Name of a model, or a GGUF file to use where it is
    #[arg(value_name = "NAME|FILE", add = names_and_files())]
    model: String,
}

pub(crate) async fn run(
    args: &PlanArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CommandError> {
    let plan = client.plan(&PlanRequest { model: model_ref(&args.model)? }).await?;
    if output.json {
        return Ok(output.value(&plan)?);
    }
    for line in lines(&plan) {
        output.line(&line)?;
    }
    Ok(())
}

fn lines(plan: &Plan) -> Vec<String> {
    let load = plan.load_ms.map_or_else(String::new, |ms| format!(", in about {ms} ms"));
    let mut lines = vec![format!("{} {}{load}", plan.model, plan.outcome.words())];
    lines.extend(plan.reason.iter().map(|reason| format!("because   {reason}")));
    let needs = &plan.needs;
    lines.push(format!(
        "needs     {} (weights {}, kv cache {}, scratch {}); {} are free",
        mib(needs.total_bytes()),
        mib(needs.weight_bytes),
        mib(needs.kv_bytes),
        mib(needs.scratch_bytes),
        mib(plan.free_bytes),
    ));
    for evicted in &plan.evicts {
        let awaited = plan.awaits.iter().find(|(model, _)| *model == evicted.model);
        let after =
            awaited.map_or_else(String::new, |(_, n)| format!(", after its {n} running requests"));
        lines.push(format!(
            "evicts    {}, which frees {}{after}",
            evicted.model,
            mib(evicted.bytes)
        ));
    }
    for shrunk in &plan.shrinks {
        lines.push(format!("shrinks   {} by {}", shrunk.model, mib(shrunk.bytes)));
    }
    if plan.ahead > 0 {
        lines.push(format!("ahead     {} requests for it", plan.ahead));
    }
    lines
}

#[cfg(test)]
mod tests {
    use m40_control::{Evicted, MemoryParts, Outcome};

    use super::*;

    #[test]
    fn a_plan_says_what_it_takes_and_who_makes_room() {
        let plan = Plan {
            model: "big".into(),
            outcome: Outcome::WaitsForRoom,
            reason: None,
            needs: MemoryParts { weight_bytes: 3 << 20, kv_bytes: 1 << 20, scratch_bytes: 0 },
            free_bytes: 1 << 20,
            evicts: vec![Evicted { model: "small".into(), bytes: 4 << 20 }],
            shrinks: vec![],
            awaits: vec![("small".into(), 2)],
            load_ms: Some(30),
            ahead: 0,
        };
        assert_eq!(
            lines(&plan),
            [
                "big would be loaded when others have made room, in about 30 ms",
                "needs     4.0 MiB (weights 3.0 MiB, kv cache 1.0 MiB, scratch 0.0 MiB); 1.0 MiB are free",
                "evicts    small, which frees 4.0 MiB, after its 2 running requests",
            ]
        );
    }
}
