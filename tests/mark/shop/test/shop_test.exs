# SPDX-License-Identifier: Apache-2.0
defmodule ShopTest do
  use ExUnit.Case

  test "the running modules are marked, and work" do
    assert GenServer.call(Shop.Cart, {:add, 23}) == 1
    assert GenServer.call(Shop.Cart, :total) == [cents: 23]

    for module <- [Shop.Cart, Shop.Price, Shop.Price.Integer] do
      assert module.__info__(:attributes)[:scope_mark][:profile] == :all
    end

    assert Protocol.consolidated?(Shop.Price)
  end
end
