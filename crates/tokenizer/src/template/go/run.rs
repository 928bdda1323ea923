//! What a template does, done.

use std::cmp::Ordering;
use std::rc::Rc;

use serde_json::{Map, Value as Json};

use super::super::{MAX_PROMPT_BYTES, MAX_STEPS, TemplateError, clock};
use super::parse::{Function, Node, Operand, Pipe};

/// Bytes of text that cost as much as a step.
const STEP_BYTES: usize = 16;

/// Variables at a time.
const VARIABLES_MAX: usize = 256;

/// Where a template ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    AtEnd,
    /// Behind the first `.Response`, where an answer goes on.
    AfterResponse,
}

/// A value. Those of the conversation are not copied.
#[derive(Debug, Clone)]
enum Value<'a> {
    Nil,
    Bool(bool),
    Integer(i64),
    Real(f64),
    Text(&'a str),
    /// That was made on the way.
    Made(Rc<str>),
    List(&'a [Json]),
    Map(&'a Map<String, Json>),
}

impl<'a> Value<'a> {
    fn of(json: &'a Json) -> Self {
        match json {
            Json::Null => Self::Nil,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => match number.as_i64() {
                Some(integer) => Self::Integer(integer),
                None => Self::Real(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Self::Text(text),
            Json::Array(list) => Self::List(list),
            Json::Object(map) => Self::Map(map),
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Made(text) => Some(text),
            _ => None,
        }
    }

    fn is_true(&self) -> bool {
        match self {
            Self::Nil => false,
            Self::Bool(value) => *value,
            Self::Integer(value) => *value != 0,
            Self::Real(value) => *value != 0.0,
            Self::Text(_) | Self::Made(_) => self.text().is_some_and(|text| !text.is_empty()),
            Self::List(list) => !list.is_empty(),
            Self::Map(map) => !map.is_empty(),
        }
    }

    /// The field that a template calls so: `ToolCalls` is `tool_calls`. Nothing where there is none.
    fn field(&self, name: &str) -> Self {
        let Self::Map(map) = self else { return Self::Nil };
        map.get(name).or_else(|| map.get(&snake_case(name))).map_or(Self::Nil, Self::of)
    }

    fn order(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Nil, Self::Nil) => Some(Ordering::Equal),
            (Self::Bool(one), Self::Bool(other)) => Some(one.cmp(other)),
            (Self::Integer(one), Self::Integer(other)) => Some(one.cmp(other)),
            (Self::Real(one), Self::Real(other)) => one.partial_cmp(other),
            _ => Some(self.text()?.cmp(other.text()?)),
        }
    }

    fn len(&self) -> Option<usize> {
        match self {
            Self::List(list) => Some(list.len()),
            Self::Map(map) => Some(map.len()),
            _ => self.text().map(str::len),
        }
    }

    fn json(&self) -> String {
        match self {
            Self::Nil => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Integer(value) => value.to_string(),
            Self::Real(value) => Json::from(*value).to_string(),
            Self::Text(text) => Json::from(*text).to_string(),
            Self::Made(text) => Json::from(&**text).to_string(),
            // Numbers, texts and names alone, which all have a form.
            Self::List(list) => serde_json::to_string(list).unwrap_or_default(),
            Self::Map(map) => serde_json::to_string(map).unwrap_or_default(),
        }
    }

    /// As it is written: texts as they are, lists and maps as JSON.
    fn shown(self) -> String {
        match self {
            Self::Nil => String::new(),
            Self::Text(text) => text.to_owned(),
            Self::Made(text) => text.to_string(),
            other => other.json(),
        }
    }
}

/// `ToolCallID` to `tool_call_id`.
fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    let mut before_is_lower = false;
    for c in name.chars() {
        if c.is_ascii_uppercase() && before_is_lower {
            snake.push('_');
        }
        before_is_lower = !c.is_ascii_uppercase();
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

/// What follows a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
    /// The template has ended.
    Ends,
}

/// What has been written, within bounds.
pub(super) struct Run {
    pub(super) written: String,
    steps: u64,
    now: Option<i64>,
}

impl Run {
    pub(super) fn new(now: Option<i64>) -> Self {
        Self { written: String::new(), steps: 0, now }
    }

    /// Writes a template with these values.
    pub(super) fn template(
        &mut self,
        nodes: &[Node],
        values: &Json,
        stop: Stop,
    ) -> Result<(), TemplateError> {
        let root = Value::of(values);
        let variables = vec![("", root.clone())];
        let mut writing = Writing { run: self, variables, dot: root, stop, has_response: false };
        writing.nodes(nodes).map(drop)
    }

    fn spend(&mut self, bytes: usize) -> Result<(), TemplateError> {
        self.steps += 1 + (bytes / STEP_BYTES) as u64;
        if self.steps > MAX_STEPS { Err(TemplateError::TooManySteps) } else { Ok(()) }
    }

    fn write(&mut self, text: &str) -> Result<(), TemplateError> {
        self.spend(text.len())?;
        if self.written.len() + text.len() > MAX_PROMPT_BYTES {
            return Err(TemplateError::PromptTooLong);
        }
        self.written.push_str(text);
        Ok(())
    }
}

/// A template on its way.
struct Writing<'r, 'a> {
    run: &'r mut Run,
    /// By name, the innermost last; the first has no name and is all values.
    variables: Vec<(&'a str, Value<'a>)>,
    dot: Value<'a>,
    stop: Stop,
    /// Whether `.Response` was read.
    has_response: bool,
}

impl<'a> Writing<'_, 'a> {
    fn nodes(&mut self, nodes: &'a [Node]) -> Result<Flow, TemplateError> {
        let outer = self.variables.len();
        let mut flow = Flow::Next;
        for node in nodes {
            flow = self.node(node)?;
            if self.has_response && self.stop == Stop::AfterResponse {
                flow = Flow::Ends;
            }
            if flow != Flow::Next {
                break;
            }
        }
        self.variables.truncate(outer);
        Ok(flow)
    }

    fn node(&mut self, node: &'a Node) -> Result<Flow, TemplateError> {
        self.run.spend(0)?;
        match node {
            Node::Text(text) => self.run.write(text)?,
            Node::Print { pipe, line } => {
                let value = self.pipe(pipe, *line)?;
                if pipe.variables.is_empty() {
                    self.run.write(&value.shown())?;
                }
            }
            Node::If { pipe, then, other, line } => {
                let outer = self.variables.len();
                let holds = self.pipe(pipe, *line)?.is_true();
                let flow = self.nodes(if holds { then } else { other });
                self.variables.truncate(outer);
                return flow;
            }
            Node::With { pipe, then, other, line } => {
                let outer = self.variables.len();
                let value = self.pipe(pipe, *line)?;
                let flow =
                    if value.is_true() { self.within(value, then) } else { self.nodes(other) };
                self.variables.truncate(outer);
                return flow;
            }
            Node::Range { pipe, body, other, line } => return self.range(pipe, body, other, *line),
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    /// Steps for which a value is the one at hand.
    fn within(&mut self, value: Value<'a>, nodes: &'a [Node]) -> Result<Flow, TemplateError> {
        let outer = std::mem::replace(&mut self.dot, value);
        let flow = self.nodes(nodes);
        self.dot = outer;
        flow
    }

    fn range(
        &mut self,
        pipe: &'a Pipe,
        body: &'a [Node],
        other: &'a [Node],
        line: usize,
    ) -> Result<Flow, TemplateError> {
        let items: Vec<(Value<'a>, Value<'a>)> = match self.value(pipe, line)? {
            Value::Nil => vec![],
            Value::List(list) => {
                let numbered = (0..).zip(list);
                numbered.map(|(index, item)| (Value::Integer(index), Value::of(item))).collect()
            }
            Value::Map(map) => {
                let mut items: Vec<_> = map.iter().collect();
                items.sort_unstable_by_key(|(name, _)| *name);
                items.into_iter().map(|(name, item)| (Value::Text(name), Value::of(item))).collect()
            }
            _ => return Err(failure(line, "range goes through lists and maps")),
        };
        if items.is_empty() {
            return self.nodes(other);
        }
        self.run.spend(items.len() * STEP_BYTES)?;
        let outer = self.variables.len();
        for (key, item) in items {
            match pipe.variables.as_slice() {
                [] => {}
                [one] => self.set(one, item.clone(), pipe.declares, line)?,
                [first, second, ..] => {
                    self.set(first, key, pipe.declares, line)?;
                    self.set(second, item.clone(), pipe.declares, line)?;
                }
            }
            let flow = self.within(item, body)?;
            self.variables.truncate(outer);
            match flow {
                Flow::Next | Flow::Continue => {}
                Flow::Break => break,
                Flow::Ends => return Ok(Flow::Ends),
            }
        }
        Ok(Flow::Next)
    }

    fn set(
        &mut self,
        name: &'a str,
        value: Value<'a>,
        declares: bool,
        line: usize,
    ) -> Result<(), TemplateError> {
        if declares {
            if self.variables.len() > VARIABLES_MAX {
                return Err(failure(line, format!("more than {VARIABLES_MAX} variables")));
            }
            self.variables.push((name, value));
            return Ok(());
        }
        match self.variables.iter_mut().rev().find(|(known, _)| *known == name) {
            Some((_, before)) => *before = value,
            None => return Err(failure(line, format!("there is no variable ${name}"))),
        }
        Ok(())
    }

    /// The value of a pipe, which its variables have from here on.
    fn pipe(&mut self, pipe: &'a Pipe, line: usize) -> Result<Value<'a>, TemplateError> {
        let value = self.value(pipe, line)?;
        if let [name] = pipe.variables.as_slice() {
            self.set(name, value.clone(), pipe.declares, line)?;
        }
        Ok(value)
    }

    fn value(&mut self, pipe: &'a Pipe, line: usize) -> Result<Value<'a>, TemplateError> {
        let mut value = None;
        for call in &pipe.calls {
            value = Some(match call.as_slice() {
                [Operand::Function(function), arguments @ ..] => {
                    self.call(*function, arguments, value, line)?
                }
                [operand, ..] => self.operand(operand, line)?,
                [] => Value::Nil,
            });
        }
        Ok(value.unwrap_or(Value::Nil))
    }

    fn operand(&mut self, operand: &'a Operand, line: usize) -> Result<Value<'a>, TemplateError> {
        self.run.spend(0)?;
        let (value, names) = match operand {
            Operand::Field(names) => (self.dot.clone(), names),
            Operand::Variable(name, names) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                let known = known.map(|(_, value)| value.clone());
                (
                    known.ok_or_else(|| failure(line, format!("there is no variable ${name}")))?,
                    names,
                )
            }
            Operand::Group(pipe, names) => (self.value(pipe, line)?, names),
            Operand::Function(function) => return self.call(*function, &[], None, line),
            Operand::Text(text) => return Ok(Value::Text(text)),
            Operand::Integer(value) => return Ok(Value::Integer(*value)),
            Operand::Bool(value) => return Ok(Value::Bool(*value)),
            Operand::Nil => return Ok(Value::Nil),
        };
        self.has_response |= names.iter().any(|name| name == "Response");
        Ok(names.iter().fold(value, |value, name| value.field(name)))
    }

    fn call(
        &mut self,
        function: Function,
        arguments: &'a [Operand],
        piped: Option<Value<'a>>,
        line: usize,
    ) -> Result<Value<'a>, TemplateError> {
        if matches!(function, Function::And | Function::Or) {
            return self.choice(function == Function::Or, arguments, piped, line);
        }
        let mut values = vec![];
        for argument in arguments {
            values.push(self.operand(argument, line)?);
        }
        values.extend(piped);
        let read = values.iter().filter_map(|value| value.text()).map(str::len).sum();
        self.run.spend(read)?;
        let number = |value: &Value<'_>| match value {
            Value::Integer(value) => usize::try_from(*value).ok(),
            _ => None,
        };
        let outside = || failure(line, "an index is outside of what it is of");
        match (function, values.as_slice()) {
            (Function::Not, [value]) => Ok(Value::Bool(!value.is_true())),
            (Function::Eq, [first, others @ ..]) if !others.is_empty() => {
                let equal = |other: &Value<'_>| first.order(other) == Some(Ordering::Equal);
                Ok(Value::Bool(others.iter().any(equal)))
            }
            (Function::Ne, [one, other]) => {
                Ok(Value::Bool(one.order(other) != Some(Ordering::Equal)))
            }
            (Function::Lt | Function::Le | Function::Gt | Function::Ge, [one, other]) => {
                let order = one.order(other);
                let order = order.ok_or_else(|| failure(line, "what is compared has no order"))?;
                Ok(Value::Bool(match function {
                    Function::Lt => order.is_lt(),
                    Function::Le => order.is_le(),
                    Function::Gt => order.is_gt(),
                    _ => order.is_ge(),
                }))
            }
            (Function::Len, [value]) => {
                let len = value.len().ok_or_else(|| failure(line, "len of what has none"))?;
                Ok(Value::Integer(len as i64))
            }
            (Function::Index, [Value::List(list), at]) => {
                let item = number(at).and_then(|at| list.get(at));
                item.map(Value::of).ok_or_else(outside)
            }
            (Function::Index, [Value::Map(map), name]) => {
                Ok(name.text().and_then(|name| map.get(name)).map_or(Value::Nil, Value::of))
            }
            (Function::Slice, [value, bounds @ ..]) if bounds.len() <= 2 => {
                let len = value.len().ok_or_else(|| failure(line, "slice of what has no parts"))?;
                let bound = |at: usize, otherwise| match bounds.get(at) {
                    Some(bound) => number(bound).ok_or_else(outside),
                    None => Ok(otherwise),
                };
                let range = bound(0, 0)?..bound(1, len)?;
                match value {
                    Value::List(list) => list.get(range).map(Value::List).ok_or_else(outside),
                    Value::Text(text) => text.get(range).map(Value::Text).ok_or_else(outside),
                    Value::Made(text) => {
                        let part = text.get(range).map(|part| Value::Made(part.into()));
                        part.ok_or_else(outside)
                    }
                    _ => Err(failure(line, "slice of what has no parts")),
                }
            }
            (Function::Print, _) => {
                let mut text = String::new();
                let mut before_is_text = true;
                for value in values {
                    let is_text = value.text().is_some();
                    text.push_str(if is_text || before_is_text { "" } else { " " });
                    before_is_text = is_text;
                    text.push_str(&value.shown());
                }
                self.made(text)
            }
            (Function::Json, [value]) => {
                let json = value.json();
                self.made(json)
            }
            (Function::CurrentDate, []) => {
                let today = self.run.now.map(|now| clock::format(now, "%Y-%m-%d"));
                self.made(today.unwrap_or_default())
            }
            _ => Err(failure(line, format!("{function:?} has other arguments"))),
        }
    }

    /// `and` and `or`: the first value that decides, or the last.
    fn choice(
        &mut self,
        wanted: bool,
        arguments: &'a [Operand],
        piped: Option<Value<'a>>,
        line: usize,
    ) -> Result<Value<'a>, TemplateError> {
        let mut value = None;
        for argument in arguments {
            let next = self.operand(argument, line)?;
            if next.is_true() == wanted {
                return Ok(next);
            }
            value = Some(next);
        }
        piped.or(value).ok_or_else(|| failure(line, "and and or have arguments"))
    }

    /// A text that was made, which costs as much as it is long.
    fn made(&mut self, text: String) -> Result<Value<'a>, TemplateError> {
        if text.len() > MAX_PROMPT_BYTES {
            return Err(TemplateError::PromptTooLong);
        }
        self.run.spend(text.len())?;
        Ok(Value::Made(text.into()))
    }
}

fn failure(line: usize, message: impl Into<String>) -> TemplateError {
    TemplateError::Render { line, message: message.into() }
}
