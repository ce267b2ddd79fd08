%% SPDX-License-Identifier: Apache-2.0
%% A supervisor of gen_servers.
-module(names_sup).
-behaviour(supervisor).
-export([start_link/1, init/1]).

start_link(Children) -> supervisor:start_link({local, ?MODULE}, ?MODULE, Children).

init(Children) ->
    {ok, {#{strategy => one_for_one},
          [#{id => N, start => {names_server, start_link, [N]}} || N <- lists:seq(1, Children)]}}.
