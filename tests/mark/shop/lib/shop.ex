# SPDX-License-Identifier: Apache-2.0
defprotocol Shop.Price do
  def of(item)
end

defimpl Shop.Price, for: Integer do
  def of(cents), do: {:cents, cents}
end

defmodule Shop.Counter do
  @callback count(term, integer) :: integer
end

defmodule Shop.Cart do
  use GenServer
  @behaviour Shop.Counter

  def start_link(items), do: GenServer.start_link(__MODULE__, items, name: __MODULE__)
  def init(items), do: {:ok, items}
  def handle_call({:add, item}, _from, items), do: answer(count(item, length(items)), [item | items])
  def handle_call(:total, _from, items), do: {:reply, Enum.map(items, &Shop.Price.of/1), items}
  def count(_, n), do: n + 1
  defp answer(reply, items), do: {:reply, reply, items}
end

defmodule Shop do
  use Application
  def start(_, _), do: Supervisor.start_link([{Shop.Cart, []}], strategy: :one_for_one)
end
