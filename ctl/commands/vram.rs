//! `m40ctl vram` and `m40ctl ps`

use m40_control::{Client, MemoryParts, ModelEntry, Vram};

use crate::error::CommandError;
use crate::output::{Output, mib, time};

pub(crate) async fn run(client: &Client, output: &mut Output) -> Result<(), CommandError> {
    let vram = client.vram().await?;
    if output.json {
        return Ok(output.value(&vram)?);
    }
    Ok(output.table(&rows(&vram))?)
}

fn rows(vram: &Vram) -> Vec<Vec<String>> {
    let row = |name: &str, memory: &MemoryParts, state: &str| {
        let &MemoryParts { weight_bytes, kv_bytes, scratch_bytes } = memory;
        let bytes = [weight_bytes, kv_bytes, scratch_bytes, memory.total_bytes()].map(mib);
        [&[name.to_owned()][..], &bytes, &[state.to_owned()]].concat()
    };
    let single = |name: &str, bytes: u64, note: &str| {
        let gap = String::new;
        vec![name.to_owned(), gap(), gap(), gap(), mib(bytes), note.to_owned()]
    };
    let heading = ["", "WEIGHTS", "KV CACHE", "SCRATCH", "TOTAL", ""].map(str::to_owned).to_vec();
    let models = vram.models.iter().map(|model| {
        row(&model.model, &model.memory, if model.reserved { "being loaded" } else { "" })
    });
    let mut rows: Vec<_> = std::iter::once(heading).chain(models).collect();
    rows.push(row("all models", &vram.sum, ""));
    rows.push(single("free", vram.free_bytes, ""));
    if let Some(bytes) = vram.device_free_bytes {
        rows.push(single("free, by the device", bytes, ""));
    }
    rows.push(single("budget", vram.budget_bytes, &vram.device));
    rows
}

pub(crate) async fn ps(client: &Client, output: &mut Output) -> Result<(), CommandError> {
    let mut models = client.status().await?.models;
    models.retain(|model| model.loaded.is_some());
    if output.json {
        return Ok(output.value(&models)?);
    }
    if models.is_empty() {
        output.note("no model is in memory")?;
        return Ok(());
    }
    let heading =
        ["NAME", "STATE", "MEMORY", "CONTEXT", "RUNNING", "WAITING", "ANSWERED", "LEAVES IN"];
    let heading = heading.map(str::to_owned).to_vec();
    let rows = std::iter::once(heading).chain(models.iter().filter_map(ps_row));
    Ok(output.table(&rows.collect::<Vec<_>>())?)
}

fn ps_row(model: &ModelEntry) -> Option<Vec<String>> {
    let loaded = model.loaded.as_ref()?;
    let leaves = loaded.leaves_in_s.map(|seconds| time(seconds.saturating_mul(1000)));
    Some(vec![
        model.name.clone(),
        model.state.name().to_owned(),
        mib(loaded.memory_bytes),
        loaded.context_tokens.to_string(),
        loaded.running.to_string(),
        loaded.waiting.to_string(),
        loaded.jobs_done.to_string(),
        leaves.unwrap_or_else(|| "-".to_owned()),
    ])
}

#[cfg(test)]
mod tests {
    use m40_control::ModelMemory;

    use super::*;

    #[test]
    fn the_account_has_a_line_for_each_model_and_ends_with_the_budget() {
        let memory =
            MemoryParts { weight_bytes: 5 << 20, kv_bytes: 2 << 20, scratch_bytes: 1 << 20 };
        let vram = Vram {
            device: "cpu".into(),
            budget_bytes: 20 << 20,
            held_bytes: 8 << 20,
            free_bytes: 12 << 20,
            device_free_bytes: None,
            sum: memory,
            models: vec![ModelMemory { model: "m".into(), reserved: true, memory }],
        };
        let rows: Vec<String> = rows(&vram).iter().map(|row| row.join("|")).collect();
        assert_eq!(
            rows,
            [
                "|WEIGHTS|KV CACHE|SCRATCH|TOTAL|",
                "m|5.0 MiB|2.0 MiB|1.0 MiB|8.0 MiB|being loaded",
                "all models|5.0 MiB|2.0 MiB|1.0 MiB|8.0 MiB|",
                "free||||12.0 MiB|",
                "budget||||20.0 MiB|cpu",
            ]
        );
    }
}
