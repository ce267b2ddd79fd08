%% SPDX-License-Identifier: Apache-2.0
%% A small node that does a little of everything: orders come, workers take them, one is slow.
-module(shop).
-export([start/0]).

start() ->
    Till = spawn(fun() -> till(0) end),
    register(till, Till),
    [spawn(fun() -> customer(N) end) || N <- lists:seq(1, 20)],
    receive after infinity -> ok end.

%% Every order is a process of its own; one in fifty fails.
customer(N) ->
    spawn(fun() -> order(N) end),
    timer:sleep(rand:uniform(20)),
    customer(N).

order(_) ->
    Basket = [{item, I, rand:uniform(100)} || I <- lists:seq(1, 200)],
    till ! {pay, self(), lists:sum([Price || {item, _, Price} <- Basket])},
    receive {paid, _} -> ok after 1000 -> ok end,
    case rand:uniform(50) of
        1 -> exit({shutdown, out_of_stock});
        _ -> ok
    end.

till(Sum) ->
    receive
        {pay, From, Amount} ->
            From ! {paid, Amount},
            till(Sum + Amount)
    end.
