# SPDX-License-Identifier: Apache-2.0
defmodule Shop.Count do
  # What each kind of server has handled, as it counts itself: calls, casts, infos.
  @kinds [calls: 1, casts: 2, infos: 3]
  @servers [Shop.Worker, Shop.Stage]

  def new do
    for server <- @servers, do: :persistent_term.put({__MODULE__, server}, :counters.new(3, []))
  end

  def add(server, kind),
    do: :counters.add(:persistent_term.get({__MODULE__, server}), @kinds[kind], 1)

  def text do
    for server <- @servers, {kind, place} <- @kinds, into: "" do
      count = :counters.get(:persistent_term.get({__MODULE__, server}), place)
      " #{inspect(server)}:#{kind}=#{count}"
    end
  end
end

defmodule Shop.Worker do
  # One of many, under a dynamic supervisor, found by a registry.
  use GenServer

  def start_link(number), do: GenServer.start_link(__MODULE__, number, name: name(number))
  def name(number), do: {:via, Registry, {Shop.Registry, number}}
  def init(number), do: {:ok, number}

  def handle_call(:work, _from, number) do
    Shop.Count.add(__MODULE__, :calls)
    {:reply, number, number}
  end

  def handle_cast(:work, number) do
    Shop.Count.add(__MODULE__, :casts)
    {:noreply, number}
  end
end

defmodule Shop.Stage do
  # A producer as GenStage has them: demand comes as a message, and events go out as one.
  use GenServer

  def start_link(_), do: GenServer.start_link(__MODULE__, 0, name: __MODULE__)
  def init(first), do: {:ok, first}

  def handle_info({:"$gen_producer", {consumer, tag}, {:ask, count}}, first) do
    Shop.Count.add(__MODULE__, :infos)
    send(consumer, {:"$gen_consumer", {self(), tag}, Enum.to_list(first..(first + count - 1))})
    {:noreply, first + count}
  end
end

defmodule Shop.Load do
  @workers 5

  def children do
    [
      Shop.Stage,
      {Registry, keys: :unique, name: Shop.Registry},
      {DynamicSupervisor, name: Shop.Workers},
      {Task.Supervisor, name: Shop.Tasks},
      %{id: :agent, start: {__MODULE__, :start_agent, []}}
    ]
  end

  def start_agent, do: Agent.start_link(fn -> 0 end, name: Shop.Total)

  # Does everything *count* times; answers what the servers have counted, and what was asked of
  # those that are Elixir's own.
  def run(count) do
    Shop.Count.new()

    for n <- 1..@workers,
        do: {:ok, _} = DynamicSupervisor.start_child(Shop.Workers, {Shop.Worker, n})

    for n <- 1..count, do: once(n)
    total = Agent.get(Shop.Total, & &1)
    # Casts are over when a call is.
    for n <- 1..@workers, do: GenServer.call(Shop.Worker.name(n), :work)
    "load" <> Shop.Count.text() <> " Agent_(Shop.Load):calls=#{total + 1}"
  end

  defp once(n) do
    worker = Shop.Worker.name(1 + rem(n, @workers))
    GenServer.call(worker, :work)
    GenServer.cast(worker, :work)
    Agent.update(Shop.Total, &(&1 + 1))
    Task.await(Task.Supervisor.async(Shop.Tasks, fn -> GenServer.call(worker, :work) end))
    tag = make_ref()
    send(Shop.Stage, {:"$gen_producer", {self(), tag}, {:ask, 2}})
    receive do: ({:"$gen_consumer", {_, ^tag}, [_, _]} -> :ok)
  end
end
