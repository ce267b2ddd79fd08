# SPDX-License-Identifier: Apache-2.0
defmodule ScopeMark.MixProject do
  use Mix.Project

  def project do
    [
      app: :scope_mark,
      version: "0.1.0",
      elixir: "~> 1.14",
      description: "Markers in compiled Erlang and Elixir code, seen from outside by scope-trace",
      package: package(),
      erlc_options: [:debug_info, :warnings_as_errors],
      escript: [main_module: :scope_mark_cli, name: "scope-mark"],
      deps: []
    ]
  end

  def application do
    [extra_applications: []]
  end

  defp package do
    [
      name: "scope_mark",
      licenses: ["Apache-2.0"],
      links: %{},
      build_tools: ["mix", "rebar3"],
      files: ~w(src lib mix.exs rebar.config README.md LICENSE)
    ]
  end
end
