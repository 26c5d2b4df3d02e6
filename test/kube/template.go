// Renders deploy/chart with Go's own text/template, to compare test/chart.ts with (test/kube/deploy.ts). It has the
// functions that the chart uses, as helm has them; toYaml writes keys on lines of their own and JSON, which is YAML, behind.
// Usage: go run template.go CHART VALUES.json NAMESPACE; prints file names and texts as JSON.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/template"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func asJson(value any) string {
	text, err := json.Marshal(value)
	must(err)
	return string(text)
}

func main() {
	chart, namespace := os.Args[1], os.Args[3]
	text, err := os.ReadFile(os.Args[2])
	must(err)
	var input map[string]any
	must(json.Unmarshal(text, &input))
	root := template.New("").Option("missingkey=error")
	root.Funcs(template.FuncMap{
		"include": func(name string, data any) (string, error) {
			var out bytes.Buffer
			err := root.ExecuteTemplate(&out, name, data)
			return out.String(), err
		},
		"b64enc": func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) },
		"quote": func(value any) string { return fmt.Sprintf("%q", fmt.Sprint(value)) },
		"fail":  func(text string) (string, error) { return "", fmt.Errorf("%s", text) },
		"int":   func(value float64) int { return int(value) },
		"nindent": func(count int, text string) string {
			return "\n" + strings.Repeat(" ", count) + strings.ReplaceAll(text, "\n", "\n"+strings.Repeat(" ", count))
		},
		"default": func(fallback, value any) any {
			if truth, _ := template.IsTrue(value); truth {
				return value
			}
			return fallback
		},
		"toYaml": func(value any) string {
			object, ok := value.(map[string]any)
			if !ok {
				return asJson(value)
			}
			lines := []string{}
			for key, field := range object {
				lines = append(lines, asJson(key)+": "+asJson(field))
			}
			sort.Strings(lines)
			return strings.Join(lines, "\n")
		},
	})
	files, err := filepath.Glob(filepath.Join(chart, "templates", "*"))
	must(err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		must(err)
		_, err = root.New(filepath.Base(file)).Parse(string(text))
		must(err)
	}
	rendered := map[string]string{}
	for _, file := range files {
		var out bytes.Buffer
		must(root.ExecuteTemplate(&out, filepath.Base(file), map[string]any{
			"Values":  input["values"],
			"Chart":   input["chart"],
			"Release": map[string]any{"Name": "sluice", "Namespace": namespace, "Service": "Helm"},
		}))
		rendered[filepath.Base(file)] = out.String()
	}
	must(json.NewEncoder(os.Stdout).Encode(rendered))
}
