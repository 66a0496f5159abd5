// SPDX-License-Identifier: Apache-2.0
// What is wrong with Kubernetes objects: `node check.cjs <objects.json` with node_modules beside it prints a list of
// messages for each. A schema finds what is missing or of a wrong type, and the types find what is unknown.
'use strict';
const fs = require('fs');
const path = require('path');
const ts = require('typescript');

const OPTIONS = {
    strict: true, noEmit: true, types: [], target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.CommonJS, moduleResolution: ts.ModuleResolutionKind.Node10, skipLibCheck: true,
};

function moduleOf(object) {
    const models = object.apiVersion.startsWith('monitoring.coreos.com/') ? '@kubernetes-models/prometheus-operator'
        : 'kubernetes-models';
    return `${models}/${object.apiVersion}/${object.kind}`;
}

function schemaErrors(object) {
    const Model = require(moduleOf(object))[object.kind];
    try {
        new Model(object).validate();
        return [];
    } catch (error) {
        return error.errors ? error.errors.map((e) => `${e.instancePath}: ${e.message}`) : [String(error)];
    }
}

/* One source file for each object, so that a message says which it is about. */
function typeErrors(objects) {
    const names = objects.map((_, i) => path.join(__dirname, `object${i}.ts`));
    const texts = new Map(objects.map((object, i) => [names[i],
        `import type { I${object.kind} } from '${moduleOf(object)}';\n` +
        `export const object: I${object.kind} = ${JSON.stringify(object, null, 1)};\n`]));
    const host = ts.createCompilerHost(OPTIONS);
    const { fileExists, readFile, getSourceFile } = host;
    host.fileExists = (name) => texts.has(name) || fileExists(name);
    host.readFile = (name) => texts.get(name) ?? readFile(name);
    host.getSourceFile = (name, ...rest) => texts.has(name)
        ? ts.createSourceFile(name, texts.get(name), OPTIONS.target) : getSourceFile(name, ...rest);
    const program = ts.createProgram(names, OPTIONS, host);
    return names.map((name) => ts.getPreEmitDiagnostics(program, program.getSourceFile(name))
        .map((d) => ts.flattenDiagnosticMessageText(d.messageText, ' ')));
}

const objects = JSON.parse(fs.readFileSync(0, 'utf8'));
const types = typeErrors(objects);
console.log(JSON.stringify(objects.map((object, i) => [...schemaErrors(object), ...types[i]])));
