# SPDX-License-Identifier: Apache-2.0
defmodule Shop.Cart do
  # Counts each call of handle_call/3 itself. Compiled with another SHOP_VERSION it is other code.
  use GenServer

  @version System.get_env("SHOP_VERSION", "1")

  def start_link(_), do: GenServer.start_link(__MODULE__, %{owner: :ann, items: 0}, name: __MODULE__)

  def init(state), do: {:ok, state}

  def handle_call({:add, _item, count}, _from, state) do
    :counters.add(:persistent_term.get(:shop_calls), 1, 1)
    {:reply, {:ok, @version}, %{state | items: state.items + count}}
  end
end
