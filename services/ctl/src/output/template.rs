//! The part of Go's templates that people use with docker: fields, `json`, `range`, `if`, `index`, `len`, `join`, pipes, ...
//!
//! Invariants: a template is checked before anything is printed; a field that does not exist is an error that names it, in a map it
//! is `<no value>`.

mod eval;
mod parse;

use serde_json::Value;

use crate::error::{Error, Result};

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
enum Node {
    Text(String),
    Show(Pipe),
    If(Pipe, Vec<Node>, Vec<Node>),
    Range(Pipe, Vec<Node>, Vec<Node>),
    With(Pipe, Vec<Node>, Vec<Node>),
}

/// Calls, each given the value of the one before as its last argument.
type Pipe = Vec<Call>;

/// A function or a single value, with arguments.
#[derive(Debug, Clone, PartialEq)]
struct Call {
    head: Term,
    arguments: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq)]
enum Term {
    /// `.A.B` of where we are.
    Field(Vec<String>),
    /// `$.A` of the whole.
    Root(Vec<String>),
    Literal(Value),
    Function(String),
    Nested(Pipe),
}

/// A checked template.
#[derive(Debug, Clone)]
pub struct Template(Vec<Node>);

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self> {
        parse::nodes(text)
            .map(Self)
            .map_err(|why| Error::Usage(format!("invalid template {text:?}: {why}")))
    }

    /// Fills it in.
    ///
    /// # Errors
    /// For a field or function that does not fit the value.
    pub fn render(&self, value: &Value) -> Result<String> {
        let mut out = String::new();
        eval::nodes(&self.0, value, value, &mut out)
            .map_err(|why| Error::Usage(format!("fill in the template: {why}")))?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(text: &str) -> String {
        let value = json!({"Name": "web", "N": 3, "Yes": true, "List": ["a", "b"], "Empty": [],
            "Map": {"k.1": "v", "x": {"y": 1}}});
        Template::parse(text)
            .and_then(|template| template.render(&value))
            .unwrap()
    }

    #[test]
    fn what_people_write() {
        for (text, out) in [
            ("{{.Name}}-{{ .N }}", "web-3"),
            ("{{json .List}}", r#"["a","b"]"#),
            (
                "{{json .}}",
                r#"{"Empty":[],"List":["a","b"],"Map":{"k.1":"v","x":{"y":1}},"N":3,"Name":"web","Yes":true}"#,
            ),
            ("{{range .List}}<{{.}}>{{end}}", "<a><b>"),
            ("{{range $i, $e := .List}}{{$i}}={{$e}} {{end}}", "0=a 1=b "),
            ("{{range .Empty}}x{{else}}none{{end}}", "none"),
            ("{{range $k, $v := .Map}}{{$k}};{{end}}", "k.1;x;"),
            ("{{if .Yes}}y{{else}}n{{end}}", "y"),
            ("{{if eq .Name \"web\"}}1{{else if .Yes}}2{{end}}", "1"),
            ("{{if and .Yes (not .Empty)}}both{{end}}", "both"),
            ("{{index .Map \"k.1\"}}", "v"),
            ("{{(index .List 1)}}", "b"),
            ("{{.Map.x.y}}", "1"),
            ("{{len .List}}", "2"),
            ("{{.Name | upper | printf \"%s!\"}}", "WEB!"),
            ("{{join .List \",\"}}", "a,b"),
            ("{{with .Map.x}}{{.y}}{{$.Name}}{{end}}", "1web"),
            ("{{- .Name -}}  ", "web"),
            ("{{.Map.none}}", "<no value>"),
            ("{{println .N}}", "3\n"),
            ("{{/* note */}}x", "x"),
        ] {
            assert_eq!(render(text), out, "{text}");
        }
    }

    #[test]
    fn mistakes_are_told() {
        for text in [
            "{{.Name",
            "{{end}}",
            "{{if .X}}",
            "{{nosuch .Name}}",
            "{{\"open}}",
            "{{range}}{{end}}",
        ] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
        let error = Template::parse("{{.Nothing}}")
            .unwrap()
            .render(&json!({"Name": 1}))
            .unwrap_err();
        assert!(error.to_string().contains("Nothing"), "{error}");
    }
}
