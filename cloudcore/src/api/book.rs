//! Routes and their description, made together: a [`Book`] holds the router and the OpenAPI paths.

use std::collections::BTreeMap;

use axum::{
    Router,
    handler::Handler,
    http::Method,
    middleware,
    routing::{MethodFilter, on},
};
use serde_json::{Map, Value, json};
use utoipa::{
    ToSchema,
    openapi::{RefOr, Schema},
};

use super::{
    Api,
    guard::{self, Rule},
};

/// The router and what it serves, in words for programs.
pub(crate) struct Book {
    pub(crate) router: Router<Api>,
    /// Every route, with what it takes.
    pub(crate) routes: Vec<(Method, String, Rule)>,
    paths: Map<String, Value>,
    schemas: BTreeMap<String, Value>,
}

/// Describes one operation.
pub(crate) struct Page {
    summary: String,
    parameters: Vec<Value>,
    body: Option<Value>,
    responses: Map<String, Value>,
}

impl Page {
    /// An operation in one line.
    pub(crate) fn new(summary: impl Into<String>) -> Page {
        let failure = json!({
            "description": "A refusal: see its reason and message",
            "content": {"application/json": {"schema": reference("Status")}},
        });
        let responses = [("default".to_owned(), failure)].into_iter().collect();
        Page { summary: summary.into(), parameters: vec![], body: None, responses }
    }

    /// A parameter of the query.
    pub(crate) fn query(mut self, name: &str, kind: &str, description: &str) -> Page {
        let schema = json!({"type": kind});
        self.parameters.push(
            json!({"name": name, "in": "query", "required": false, "schema": schema, "description": description}),
        );
        self
    }

    /// What is sent.
    pub(crate) fn body(mut self, media_type: &str, schema: Value) -> Page {
        self.body = Some(json!({"required": true, "content": {media_type: {"schema": schema}}}));
        self
    }

    /// What comes back when it went well.
    pub(crate) fn answer(mut self, code: u16, description: &str, media_type: &str, schema: Value) -> Page {
        let content = json!({media_type: {"schema": schema}});
        self.responses.insert(code.to_string(), json!({"description": description, "content": content}));
        self
    }

    fn operation(mut self, path: &str) -> Value {
        for name in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
            let schema = json!({"type": "string"});
            self.parameters.push(json!({"name": name, "in": "path", "required": true, "schema": schema}));
        }
        let mut operation =
            json!({"summary": self.summary, "parameters": self.parameters, "responses": self.responses});
        if let (Some(body), Some(map)) = (self.body, operation.as_object_mut()) {
            map.insert("requestBody".into(), body);
        }
        operation
    }
}

/// A reference to a schema of the document.
pub(crate) fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

impl Book {
    /// An empty book.
    pub(crate) fn new() -> Book {
        let status = json!({
            "type": "object",
            "required": ["kind", "code", "reason", "message"],
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "code": {"type": "integer", "description": "HTTP status"},
                "reason": {"type": "string", "description": "One word for programs"},
                "message": {"type": "string", "description": "What is wrong and how to mend it"},
            },
        });
        let schemas = [("Status".to_owned(), status)].into();
        Book { router: Router::new(), routes: vec![], paths: Map::new(), schemas }
    }

    /// Adds an operation, and before it what it takes to be let through.
    pub(crate) fn on<H, T>(mut self, method: Method, path: &str, handler: H, rule: Rule, page: Page) -> Book
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        let Ok(filter) = MethodFilter::try_from(method.clone()) else { return self }; // all of ours have one
        let pass = middleware::from_fn(move |request, next| guard::pass(rule, request, next));
        self.router = self.router.route(path, on(filter, handler).route_layer(pass));
        self.routes.push((method.clone(), path.to_owned(), rule));
        let item = self.paths.entry(path).or_insert_with(|| json!({}));
        if let Some(item) = item.as_object_mut() {
            item.insert(method.as_str().to_ascii_lowercase(), page.operation(path));
        }
        self
    }

    /// Adds the schema of a type with all that it refers to, and refers to it.
    pub(crate) fn schema<T: ToSchema>(&mut self) -> Value {
        let mut all: Vec<(String, RefOr<Schema>)> = vec![(T::name().into_owned(), T::schema())];
        T::schemas(&mut all);
        for (name, schema) in all {
            self.define(&name, serde_json::to_value(schema).unwrap_or_default());
        }
        reference(&T::name())
    }

    /// Adds a schema under a name.
    pub(crate) fn define(&mut self, name: &str, schema: Value) {
        self.schemas.insert(name.to_owned(), schema);
    }

    /// The OpenAPI document.
    pub(crate) fn document(&self) -> Value {
        json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Crossdock",
                "description": "Objects, artifacts and metadata of a Crossdock hub",
                "version": "v1",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "paths": self.paths,
            "components": {
                "schemas": self.schemas,
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            },
            "security": [{"token": []}],
        })
    }
}
