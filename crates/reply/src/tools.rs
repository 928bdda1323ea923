//! The tools that a request offers, and how they are to be used.

use serde_json::{Value, json};

/// Most tools of one request.
const TOOLS_MAX: usize = 128;
/// Longest name of a tool, as OpenAI has it.
const NAME_BYTES_MAX: usize = 64;

/// A function that a model may ask to be called.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Letters, digits, `_`, `-` and `.`.
    pub name: String,
    /// What it does, for the model.
    pub description: Option<String>,
    /// JSON schema of an object.
    pub parameters: Value,
    /// Whether the arguments must be as the schema says.
    pub strict: bool,
}

/// The tools of a request, each with a name of its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tools(Vec<Tool>);

/// How a model is to use the tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// Not at all.
    None,
    /// As it likes.
    #[default]
    Auto,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

/// Why these are no tools.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ToolsError {
    /// More than are taken.
    #[error("{count} tools, the most is {TOOLS_MAX}")]
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// A name that none of the formats could write.
    #[error(
        "the tool's name {name:?} must be 1 to {NAME_BYTES_MAX} letters, digits, '_', '-' or '.'"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// Two tools of one name.
    #[error("two tools have the name {name:?}")]
    Twice {
        /// The name.
        name: String,
    },
    /// The schema of the parameters is no object.
    #[error("the parameters of tool {name:?} must be a JSON schema, which is an object")]
    Parameters {
        /// The tool's name.
        name: String,
    },
}

impl Tools {
    /// Checks tools.
    ///
    /// # Errors
    /// See [`ToolsError`].
    pub fn new(tools: Vec<Tool>) -> Result<Self, ToolsError> {
        if tools.len() > TOOLS_MAX {
            return Err(ToolsError::TooMany { count: tools.len() });
        }
        for (at, tool) in tools.iter().enumerate() {
            let name = tool.name.clone();
            if !is_name(&name) {
                return Err(ToolsError::Name { name });
            }
            if !tool.parameters.is_object() {
                return Err(ToolsError::Parameters { name });
            }
            if tools[..at].iter().any(|other| other.name == name) {
                return Err(ToolsError::Twice { name });
            }
        }
        Ok(Self(tools))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tools in the request's order.
    pub fn iter(&self) -> impl Iterator<Item = &Tool> {
        self.0.iter()
    }

    /// The tool of this name.
    pub fn get(&self, name: &str) -> Option<&Tool> {
        self.0.iter().find(|tool| tool.name == name)
    }

    /// The tools as chat templates take them: OpenAI's shape.
    pub fn to_template(&self) -> Value {
        self.0.iter().map(Tool::to_template).collect()
    }
}

impl Tool {
    fn to_template(&self) -> Value {
        let mut function = json!({"name": self.name});
        if let Some(description) = &self.description {
            function["description"] = json!(description);
        }
        function["parameters"] = self.parameters.clone();
        json!({"type": "function", "function": function})
    }
}

fn is_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str, parameters: Value) -> Tool {
        Tool { name: name.into(), description: None, parameters, strict: false }
    }

    #[test]
    fn what_is_no_set_of_tools_is_refused_by_name() {
        let object = || json!({"type": "object"});
        let name = |name: &str| ToolsError::Name { name: name.into() };
        assert_eq!(Tools::new(vec![tool("a b", object())]), Err(name("a b")));
        assert_eq!(Tools::new(vec![tool("", object())]), Err(name("")));
        let twice = Tools::new(vec![tool("a", object()), tool("a", object())]);
        assert_eq!(twice, Err(ToolsError::Twice { name: "a".into() }));
        let parameters = Tools::new(vec![tool("a", json!(7))]);
        assert_eq!(parameters, Err(ToolsError::Parameters { name: "a".into() }));
        let many = (0..129).map(|n| tool(&n.to_string(), object())).collect();
        assert_eq!(Tools::new(many), Err(ToolsError::TooMany { count: 129 }));
    }

    #[test]
    fn templates_get_the_shape_that_they_know() {
        let tools = Tools::new(vec![tool("look_up", json!({"type": "object"}))]).unwrap();
        let want = json!([{
            "type": "function",
            "function": {"name": "look_up", "parameters": {"type": "object"}},
        }]);
        assert_eq!(tools.to_template(), want);
        assert!(tools.get("look_up").is_some() && tools.get("other").is_none());
    }
}
