//! `m40ctl list`

use m40_control::Client;

use crate::error::CommandError;
use crate::output::{Output, model_rows};

pub(crate) async fn run(client: &Client, output: &mut Output) -> Result<(), CommandError> {
    let list = client.models().await?;
    if output.json {
        return Ok(output.value(&list)?);
    }
    if list.models.is_empty() {
        output.note("no models yet: `m40ctl pull SOURCE` adds one")?;
        return Ok(());
    }
    Ok(output.table(&model_rows(&list.models))?)
}
