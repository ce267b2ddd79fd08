# SPDX-License-Identifier: Apache-2.0
defmodule Mix.Tasks.Compile.ScopeMark do
  @shortdoc "Marks what the project has compiled"
  @moduledoc """
  A compiler that rewrites the project's `.beam` files, see `ScopeMark`. It comes last in `compilers`.

  Files that it has seen are in a manifest by size and time, so a build that compiled nothing marks nothing.
  """
  use Mix.Task.Compiler

  @recursive true

  @impl true
  def run(_args) do
    config = Mix.Project.config()
    path = Mix.Project.compile_path(config)
    options = ScopeMark.options(config, :profile)

    if File.read(manifest()) == {:ok, state(path, options)} do
      {:noop, []}
    else
      outcomes = path |> ScopeMark.mark(options, behaviours(path)) |> ScopeMark.renewed()
      result = ScopeMark.report(outcomes)
      File.mkdir_p!(Path.dirname(manifest()))
      File.write!(manifest(), state(path, options))
      {result, []}
    end
  end

  @impl true
  def manifests, do: [manifest()]

  @impl true
  def clean do
    File.rm(manifest())
    :ok
  end

  defp manifest, do: Path.join(Mix.Project.manifest_path(), "compile.scope_mark")

  # What would have to be marked anew if it were different.
  defp state(path, options) do
    files =
      for file <- Path.wildcard(Path.join(path, "*.beam")) do
        %{size: size, mtime: mtime, inode: inode} = File.stat!(file, time: :posix)
        {Path.basename(file), size, mtime, inode}
      end

    :erlang.term_to_binary({:scope_mark.version(), options, Enum.sort(files)})
  end

  # The modules of the project's dependencies, in which behaviours may be defined.
  defp behaviours(own) do
    for path <- Path.wildcard(Path.join(Mix.Project.build_path(), "lib/*/ebin/*.beam")),
        Path.dirname(path) != own,
        do: path
  end
end
