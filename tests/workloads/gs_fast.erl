%% SPDX-License-Identifier: Apache-2.0
%% A planted server that works 50 us in each call.
-module(gs_fast).
-behaviour(gen_server).
-export([start/0, init/1, handle_call/3, handle_cast/2]).

start() -> gen_server:start({local, ?MODULE}, ?MODULE, [], []).

init([]) -> {ok, none}.

handle_call({work, Sent}, _From, State) ->
    Taken = gs_times:taken(?MODULE, Sent),
    spin(Taken + 50),
    gs_times:served(?MODULE, Taken),
    {reply, ok, State};
handle_call({nothing, Sent}, _From, State) ->
    Taken = gs_times:taken(?MODULE, Sent),
    gs_times:served(?MODULE, Taken),
    {reply, ok, State}.

handle_cast(_, State) -> {noreply, State}.

spin(Until) ->
    case gs_times:now() >= Until of
        true -> ok;
        false -> spin(Until)
    end.
