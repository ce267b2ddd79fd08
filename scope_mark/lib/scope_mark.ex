# SPDX-License-Identifier: Apache-2.0
defmodule ScopeMark do
  @moduledoc """
  Marks compiled code, so that each call and return can be seen from outside the node.

  In `mix.exs`:

      def project do
        [
          compilers: Mix.compilers() ++ [:scope_mark],
          scope_mark: [profile: :callbacks, only: ["Shop.*"], except: ["Shop.Repo:*"]],
          aliases: ["compile.protocols": ["compile.protocols", &ScopeMark.consolidated/1]],
          releases: [shop: [steps: [:assemble, &ScopeMark.release/1]]],
          ...
        ]
      end

  The compiler marks what the project itself compiles. `profile` is `:callbacks` in `MIX_ENV=dev` and `:none` elsewhere unless it
  is given. The release step marks everything in a release: the project, its dependencies, Elixir and OTP. Its
  profile is `release: :callbacks` or `:all` in the same list; without it the release is left as it was assembled.
  """

  @doc """
  What has to follow `compile.protocols` in a project with protocols: before Mix 1.19 they are consolidated after
  the last compiler has run.
  """
  def consolidated(_args) do
    config = Mix.Project.config()
    _ = config |> Mix.Project.consolidation_path() |> mark(options(config, :profile)) |> renewed()
    :ok
  end

  @doc """
  A step of a release, to come after `:assemble`.
  """
  def release(%{path: path} = release) do
    config = Mix.Project.config()

    case options(config, :release) do
      %{profile: :none} -> :ok
      options -> path |> mark(options) |> report()
    end

    release
  end

  @doc false
  # What the project says of a profile, as :scope_mark.mark/2 takes it.
  def options(config, key) do
    given = config[:scope_mark] || []
    default = if key == :profile and Mix.env() == :dev, do: :callbacks, else: :none
    profile = given[key] || default

    unless profile in [:none, :callbacks, :all] do
      Mix.raise("scope_mark: there is no profile #{inspect(profile)}: :callbacks, :all or :none")
    end

    try do
      %{profile: profile, only: patterns(given[:only]), except: patterns(given[:except])}
    catch
      {:bad_pattern, _} = reason -> Mix.raise("scope_mark: #{:scope_mark.format_error(reason)}")
    end
  end

  defp patterns(nil), do: []
  defp patterns(texts), do: texts |> List.wrap() |> :scope_mark.patterns()

  @doc false
  # Marks every .beam file below a folder and gives the outcomes.
  def mark(folder, options, behaviours \\ []) do
    case :scope_mark_files.find(folder) do
      {:ok, files} ->
        known = :scope_mark_files.behaviours(files ++ behaviours)
        options = Map.put(options, :behaviours, known)
        outcomes = :scope_mark_files.each(&:scope_mark_files.mark(&1, options, false), files)

        for {file, outcome} <- Enum.zip(files, outcomes) do
          case outcome do
            {:error, reason} -> %{path: file, status: :failed, reason: reason}
            outcome -> outcome
          end
        end

      {:error, {:file, :enoent}} ->
        []

      {:error, reason} ->
        [%{path: folder, status: :failed, reason: reason}]
    end
  end

  @doc false
  # The VM that has compiled a module has it loaded as it was; what is rewritten is loaded anew when it is called.
  def renewed(outcomes) do
    for %{status: status, path: path} <- outcomes, status in [:marked, :unmarked] do
      module = path |> Path.basename(".beam") |> String.to_atom()
      :code.purge(module)
      :code.delete(module)
    end

    outcomes
  end

  @doc false
  # Says what was marked, and fails if something that should be is not.
  def report(outcomes) do
    for %{status: :failed, path: path, reason: reason} <- outcomes do
      Mix.raise("scope_mark: #{path}: #{:scope_mark.format_error(reason)}")
    end

    case Enum.count(outcomes, &(&1.status in [:marked, :unmarked])) do
      0 -> :noop
      count -> Mix.shell().info("Marked #{count} modules") && :ok
    end
  end
end
