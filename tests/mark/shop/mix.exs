# SPDX-License-Identifier: Apache-2.0
defmodule Shop.MixProject do
  use Mix.Project

  def project do
    [
      app: :shop,
      version: "1.0.0",
      compilers: Mix.compilers() ++ [:scope_mark],
      scope_mark: [profile: profile("PROFILE"), release: profile("RELEASE_PROFILE")],
      aliases: ["compile.protocols": ["compile.protocols", &ScopeMark.consolidated/1]],
      releases: [shop: [steps: [:assemble, &ScopeMark.release/1]]],
      deps: [{:scope_mark, path: System.fetch_env!("SCOPE_MARK"), runtime: false}]
    ]
  end

  def application, do: [extra_applications: [:logger], mod: {Shop, []}]

  defp profile(name) do
    with text when is_binary(text) <- System.get_env(name), do: String.to_atom(text)
  end
end
