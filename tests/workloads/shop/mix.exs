# SPDX-License-Identifier: Apache-2.0
defmodule Shop.MixProject do
  use Mix.Project

  def project do
    [app: :shop, version: "1.0.0", elixir: "~> 1.14", releases: [shop: [include_executables_for: [:unix]]]]
  end

  def application, do: [mod: {Shop.Application, []}, extra_applications: []]
end
